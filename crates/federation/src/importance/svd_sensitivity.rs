//! FedPipe's measure: sensitivity of adapters in singular-value form.

use super::{ImportanceMeasure, Probe, ProbeSettings};
use crate::plan::{AdapterLoad, format_penalty, memory, memory_aim};
use fedpipe_core::{BaseFormat, Head, ModelSpec, ProbeWork, SiloProfile};

/// β1 and β2 of AdaLoRA (arXiv 2303.10512, §4 and its code).
const BETAS: (f64, f64) = (0.85, 0.85);
/// γ of AdaLoRA's orthogonality regulariser.
const ORTHOGONALITY: f64 = 0.1;
/// Bytes of the smoothed sensitivity and of its uncertainty, beside each value that trains.
const SMOOTHING_BYTES: f64 = 8.0;

/// A few training steps with ΔW = P·diag(λ)·Q on every candidate weight; the silo scores each triplet by its smoothed
/// sensitivity × uncertainty (AdaLoRA, arXiv 2303.10512, eq. 6–9) and hands back the sum by weight, normalised
/// (the use of it: FedPipe, arXiv 2404.06448).
///
/// Among the batch sizes and formats whose predicted memory fits the silo, the one of best worth in the plan's own
/// objective is taken: the batch term minus the format's penalty.
#[derive(Debug, Clone, Copy, Default)]
pub struct SvdSensitivity;

impl ImportanceMeasure for SvdSensitivity {
    fn name(&self) -> &'static str {
        "svd-sensitivity"
    }

    fn probe(&self, model: &ModelSpec, profile: &SiloProfile, head: &Head, settings: &ProbeSettings) -> Probe {
        let menu = &settings.menu;
        let (mut best, mut least): (Option<(f64, usize, BaseFormat)>, f64) = (None, f64::INFINITY);
        for &batch in menu.batch_sizes.iter().rev() {
            for &format in menu.formats.iter().filter(|format| profile.device.time.contains_key(format)) {
                let Some(needs) = probe_bytes(model, profile, settings.rank, batch, format) else { continue };
                least = least.min(needs);
                let worth = menu.batch_term(batch) - format_penalty(format);
                if needs <= memory_aim(profile) && best.is_none_or(|(most, ..)| worth > most) {
                    best = Some((worth, batch, format));
                }
            }
        }
        let Some((_, batch_size, base_format)) = best else {
            let (needs, has) = (least / f64::from(1 << 20), profile.memory_mib);
            return Probe::DoesNotFit { reason: format!("the smallest probe takes {needs:.1} MiB of its {has} MiB") };
        };
        Probe::Run(ProbeWork {
            rank: settings.rank,
            steps: settings.steps,
            batch_size,
            learning_rate: settings.learning_rate,
            base_format,
            betas: BETAS,
            orthogonality: ORTHOGONALITY,
            head: head.clone(),
        })
    }
}

/// Predicted memory of a probe: the cost model with `rank` on every candidate weight, all activations kept, and the
/// smoothed scores.
fn probe_bytes(model: &ModelSpec, profile: &SiloProfile, rank: usize, batch: usize, format: BaseFormat) -> Option<f64> {
    let load = AdapterLoad::of(model, |_| rank, |_| 0);
    let step = memory(model, &profile.device, &load, format, false, profile.lengths.large_batch(batch))?;
    Some(step.total() + SMOOTHING_BYTES * load.trained_values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Menu;
    use fedpipe_testkit::{toy_model, toy_profile};

    fn settings() -> ProbeSettings {
        let menu = Menu {
            batch_sizes: vec![2, 8],
            formats: vec![BaseFormat::F32, BaseFormat::Nf4],
            recompute: vec![false],
            ranks: vec![],
            batch_value: 0.1,
        };
        ProbeSettings { rank: 2, steps: 3, learning_rate: 1e-2, menu }
    }

    #[test]
    fn the_probe_is_the_largest_batch_on_the_finest_base_that_fit() {
        let (model, mut profile, head) = (toy_model(), toy_profile("a"), Head::new());
        let Probe::Run(probe) = SvdSensitivity.probe(&model, &profile, &head, &settings()) else { panic!() };
        assert_eq!((probe.batch_size, probe.base_format), (8, BaseFormat::F32));
        // The toy's base takes 4000 bytes in f32 and 600 in nf4: with more tokens than fit, the batch shrinks.
        profile.lengths.mean = 1000.0;
        profile.lengths.longest = 1000;
        let Probe::Run(probe) = SvdSensitivity.probe(&model, &profile, &head, &settings()) else { panic!() };
        assert_eq!((probe.batch_size, probe.base_format), (2, BaseFormat::F32));
    }

    #[test]
    fn a_silo_where_no_probe_fits_is_left_out_with_the_reason() {
        let mut profile = toy_profile("a");
        profile.memory_mib = 0;
        let probe = SvdSensitivity.probe(&toy_model(), &profile, &Head::new(), &settings());
        assert_eq!(probe, Probe::DoesNotFit { reason: "the smallest probe takes 0.0 MiB of its 0 MiB".into() });
    }
}
