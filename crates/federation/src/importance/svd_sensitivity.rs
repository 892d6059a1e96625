//! FedPipe's measure: sensitivity of adapters in singular-value form.

use super::{ImportanceMeasure, Probe, ProbeSettings, fitting};
use fedpipe_core::{Head, ModelSpec, ProbeScore, SiloProfile};

/// β1 and β2 of AdaLoRA (arXiv 2303.10512, §4 and its code).
const BETAS: (f64, f64) = (0.85, 0.85);
/// γ of AdaLoRA's orthogonality regulariser.
const ORTHOGONALITY: f64 = 0.1;

/// A few training steps with ΔW = P·diag(λ)·Q on every candidate weight; the silo scores each triplet by its smoothed
/// sensitivity × uncertainty (AdaLoRA, arXiv 2303.10512, eq. 6–9) and hands back the sum by weight, normalised
/// (the use of it: FedPipe, arXiv 2404.06448).
#[derive(Debug, Clone, Copy, Default)]
pub struct SvdSensitivity;

impl ImportanceMeasure for SvdSensitivity {
    fn name(&self) -> &'static str {
        "svd-sensitivity"
    }

    fn probe(&self, model: &ModelSpec, profile: &SiloProfile, head: &Head, settings: &ProbeSettings) -> Probe {
        let score = ProbeScore::Sensitivity {
            learning_rate: settings.learning_rate,
            betas: BETAS,
            orthogonality: ORTHOGONALITY,
        };
        fitting(model, profile, head, settings, score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Menu;
    use fedpipe_core::BaseFormat;
    use fedpipe_testkit::{toy_model, toy_profile};

    fn settings() -> ProbeSettings {
        let menu = Menu {
            batch_sizes: vec![2, 8],
            formats: vec![BaseFormat::F32, BaseFormat::Nf4],
            recompute: vec![false],
            ranks: vec![],
            batch_value: 0.1,
            step_multiples: vec![1],
            step_value: 0.1,
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
