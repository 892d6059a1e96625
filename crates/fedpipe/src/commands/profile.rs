//! `fedpipe profile`

use super::plan::Warnings;
use crate::cli::ProfileArgs;
use crate::config::Config;
use crate::device;
use crate::error::AppError;
use crate::report::Loading;
use crate::report::plan::{TERMINAL, right_aligned};
use crate::run::Surroundings;
use crate::setup::Setup;
use comfy_table::Table;
use fedpipe_core::{BaseFormat, DeviceProfile, Stop};
use fedpipe_model::HeapMeter;
use std::io::Write;
use std::sync::Arc;

/// Prints what plans are made from: the measured costs of a training step on this machine.
pub fn profile(args: &ProfileArgs, meter: &Arc<dyn HeapMeter>) -> Result<(), AppError> {
    let config = Config::load(&args.config, &args.set)?;
    let setup = Setup::load(&config, &Loading::new(false))?;
    let around = Surroundings { observer: &Warnings, stop: &Stop::default(), meter };
    let settings = setup.profile_settings(&config);
    let (profile, _) = if args.again {
        device::measure(&setup, &settings, &around)
    } else {
        device::profile(&setup, &settings, &around)
    }?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&profile).map_err(AppError::other)?,
        false => text(&profile, setup.spec.layers),
    };
    writeln!(std::io::stdout().lock(), "{}", text.trim_end()).map_err(AppError::output)
}

fn text(profile: &DeviceProfile, layers: usize) -> String {
    let mut speeds = Table::new();
    speeds.load_style(TERMINAL).set_header(["base", "forward µs", "backward µs", "tokens/s"]);
    let by_format = BaseFormat::ALL.iter().filter_map(|format| Some((format, profile.time.get(format)?)));
    for (format, time) in by_format {
        let (forward, backward) = (time.forward_s_per_token_layer, time.backward_s_per_token_layer);
        let whole = layers as f64 * (forward + backward);
        speeds.add_row([
            format.to_string(),
            format!("{:.2}", 1e6 * forward),
            format!("{:.2}", 1e6 * backward),
            format!("{:.0}", whole.recip()),
        ]);
    }
    let mut memory = Table::new();
    memory.load_style(TERMINAL).set_header([
        "activations",
        "layer B",
        "its input B",
        "workspace B",
        "computed again B",
        "rank B",
        "fixed MiB",
    ]);
    for (format, bytes) in &profile.memory {
        memory.add_row([
            format!("{format:?}").to_lowercase(),
            format!("{:.0}", bytes.layer_bytes_per_token),
            format!("{:.0}", bytes.layer_input_bytes_per_token),
            format!("{:.0}", bytes.workspace_bytes_per_token),
            format!("{:.0}", bytes.recompute_workspace_bytes_per_token),
            format!("{:.2}", bytes.adapter_bytes_per_token_rank),
            format!("{:.1}", bytes.fixed_bytes / 1_048_576.0),
        ]);
    }
    right_aligned(&mut speeds);
    right_aligned(&mut memory);
    format!(
        "{}\n\nTime of a token in a layer, and tokens of a step that trains all {layers} layers, without adapters\n{speeds}\n\n\
         Memory of a token: in a layer, of which its input when the rest is computed again, at the peak, there when the \
         layers are computed again, and a unit of rank of an adapted weight; and of a step\n{memory}\n\n\
         A unit of rank of an adapted weight takes {:.3} ns a token, a step {:.2} ms beside its tokens.\n",
        profile.device,
        1e9 * profile.adapter_s_per_token_rank,
        1e3 * profile.step_overhead_s,
    )
}
