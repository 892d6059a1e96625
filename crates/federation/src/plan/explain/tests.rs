use super::super::{CostModel, Deadline, PlanSettings, Tuning, plan, tests};
use super::*;
use fedpipe_core::{BaseFormat, CandidateWeight, MemoryTerms, TimeTerms};
use fedpipe_testkit::{toy_model, toy_profile};

fn settings(deadline_s: f64, coverage: usize) -> PlanSettings {
    PlanSettings { coverage, ..tests::settings(Deadline::Seconds(deadline_s)) }
}

/// The reasons of silos with texts of so many tokens, over a model of two layers with one weight each.
fn told(silos: &[(&str, usize, f64)], importance: [f64; 2], settings: &PlanSettings) -> Vec<Vec<String>> {
    let profile = |&(name, tokens, speed): &(&str, usize, f64)| {
        let mut profile = SiloProfile { speed, ..toy_profile(name) };
        (profile.lengths.mean, profile.lengths.longest) = (tokens as f64, tokens);
        (SiloId::from(name), profile)
    };
    let importance = [("layer.0.query".into(), importance[0]), ("layer.1.query".into(), importance[1])].into();
    let plan = plan(&toy_model(), &silos.iter().map(profile).collect(), &importance, settings).unwrap();
    plan.silos.into_values().map(|silo| silo.reasons).collect()
}

/// 8 texts of 700 tokens at 150 bytes are 0.84 of the 0.996 MB that plans may take; with the lower layer it would be 1.4 MB.
/// Ranks are worth 4/5 of 0.97, the largest batch 0.1, nf4 costs 0.03; at batch 4, worth 0.05, both layers fit.
#[test]
fn memory_that_binds_is_told_with_what_more_of_it_brings_and_what_was_passed_over() {
    let told = told(&[("a", 700, 1.0)], [0.03, 0.97], &settings(1e6, 1));
    assert_eq!(told[0][0], "5 steps of 8 texts over f32, 1 weights adapted: objective 0.8760");
    assert!(told[0][1].starts_with("memory binds: "), "{told:?}");
    assert_eq!(
        told[0][2..],
        [
            "+1 MiB: +2.7 % objective (+0.0240), r 0 → 4 on layer 0",
            "runner-up: 5 steps of 4 texts over f32, the best with another batch: objective 0.8500, ranks +0.0240, batch -0.0500",
            "second runner-up: 5 steps of 8 texts over nf4, the best with another base format: objective 0.8460, base format -0.0300",
        ]
    );
}

/// Batch 8 over both layers takes 1.4 MB and 840 s; 0.95 MiB and 45 s more than 0.996 MB and 810 s are enough. Rank 2 on the
/// lower layer would do with the 810 s, and lose 0.4·(4/5 − 2/3) for the 0.05 of the batch.
#[test]
fn budgets_that_bind_together_are_told_together() {
    let told = told(&[("a", 700, 1.0)], [0.4, 0.6], &settings(900.0, 1));
    assert!(told[0][1].starts_with("memory and time bind: "), "{told:?}");
    assert_eq!(told[0][2], "+1 MiB and +50 s a round: +5.9 % objective (+0.0500), batch 4 → 8");
}

/// Batch 8 needs 12.05 s: 0.9 of 8 and 2 s more are not enough, of 12 and 2 s more they are.
#[test]
fn time_that_binds_is_tried_twice_and_four_times_over() {
    let told = |deadline_s| told(&[("a", 10, 1.0)], [0.4, 0.6], &settings(deadline_s, 1))[0][2].clone();
    assert_eq!(told(8.0), "no gain up to +2 s a round");
    assert_eq!(told(12.0), "+2 s a round: +5.9 % objective (+0.0500), batch 4 → 8");
}

/// Alone, batch 8 is worth 1.7 + 4/5 of 0.49 without the lower layer, and batch 4 0.85 + 4/5 with it. That nobody trains the
/// lower layer costs the federation 0.51, and that both do 0.442.
#[test]
fn coverage_that_binds_is_told_with_what_it_takes() {
    let mut settings = settings(1e6, 2);
    settings.menu.batch_value = 1.7;
    let silos = [("a", 700, 1.0), ("b", 700, 1.0)];
    for silo in told(&silos, [0.51, 0.49], &settings) {
        let expected = "coverage binds: -21.1 % objective (-0.4420) of what it would reach alone, so that important \
                        weights are trained by enough silos: batch 8 → 4, r 0 → 4 on layer 0";
        assert_eq!(silo[2], expected);
        // What it would do alone with more is no more than that.
        assert_eq!(silo[3], "+1 MiB: +19.5 % objective (+0.4080), r 0 → 4 on layer 0");
    }
    let free = PlanSettings { coverage: 1, ..settings };
    assert!(told(&silos, [0.49, 0.51], &free).iter().flatten().all(|reason| !reason.contains("coverage")));
}

#[test]
fn changes_of_ranks_are_told_by_layers_and_kinds() {
    let candidate = |layer: usize, kind: &str| CandidateWeight {
        id: WeightId::new(format!("layer.{layer}.{kind}")),
        layer,
        kind: kind.into(),
        inputs: 64,
        outputs: 64,
    };
    let candidates: Vec<_> = (0..30).flat_map(|layer| ["query", "value"].map(|kind| candidate(layer, kind))).collect();
    let model = ModelSpec { layers: 30, candidates, ..toy_model() };
    let choice = |batch_size, base_format, recompute, rank: &dyn Fn(&CandidateWeight) -> usize| {
        let ranks = model.candidates.iter().map(|candidate| (candidate.id.clone(), rank(candidate)));
        Choice {
            frame: Frame { batch_size, step_multiple: 1, base_format, recompute },
            ranks: ranks.filter(|(_, rank)| *rank > 0).collect(),
            memory: MemoryTerms::default(),
            time: TimeTerms::default(),
            data: 0.0,
            objective: 0.0,
        }
    };
    let (f32, nf4) = (BaseFormat::F32, BaseFormat::Nf4);
    let before = choice(8, nf4, true, &|weight| if weight.layer < 10 { 0 } else { 8 });
    let deeper = choice(8, nf4, true, &|weight| match (weight.layer, weight.kind.as_str()) {
        (0..9, _) => 0,
        (9, "query") => 4,
        (9, _) => 0,
        (10..20, _) => 8,
        (_, _) => 16,
    });
    assert_eq!(changes(&model, &before, &deeper), "r 8 → 16 on layers 20–29, r 0 → 4 on query of layer 9");
    let framed = choice(16, f32, false, &|weight| if weight.layer < 10 { 0 } else { 8 });
    assert_eq!(changes(&model, &before, &framed), "batch 8 → 16, nf4 → f32, activations kept");
    let patchy = choice(8, nf4, true, &|weight| match weight.layer {
        layer if layer < 10 => 8 * (layer % 2),
        12 => 1,
        13 => 2,
        14 => 4,
        15 => 16,
        _ => 8,
    });
    let expected = "r 0 → 8 on 10 weights of layers 1–9, r 8 → 1 on layer 12, r 8 → 2 on layer 13, r 8 → 4 on layer 14, \
                    and others on 2 weights";
    assert_eq!(changes(&model, &before, &patchy), expected);
}

/// By hand: an eighth of the memory or of the data down to a power of two, a tenth of the deadline down to 1, 2 or 5.
#[test]
fn what_is_asked_for_more_is_round() {
    let told = |memory_mib: u64, deadline_s: f64| {
        let (model, menu) = (toy_model(), settings(1.0, 1).menu);
        let profile = SiloProfile { memory_mib, ..toy_profile("a") };
        let cost = CostModel { model: &model, profile: &profile, server_rank: 4, local_steps: 1, value_bytes: 4.0 };
        let memory_budget = MEMORY_SHARE * profile.budget_bytes() as f64;
        let problem = SiloProblem {
            cost,
            importance: &BTreeMap::new(),
            menu: &menu,
            tuning: &Tuning::default(),
            memory_budget,
            time_budget: deadline_s,
            data_budget: 9.0 * MIB,
        };
        let told = |binding| More::of(&problem, deadline_s, binding).told();
        let data = told(Binding { data: true, ..Binding::default() });
        assert_eq!(data, "+1 MiB of data a round");
        told(Binding { memory: true, time: true, data: false })
    };
    assert_eq!(told(64, 6.3), "+8 MiB and +0.5 s a round");
    assert_eq!(told(160, 100.0), "+16 MiB and +10 s a round");
    assert_eq!(told(8192, 0.29), "+1 GiB and +0.02 s a round");
    assert_eq!(told(24_576, 3_600.0), "+2 GiB and +200 s a round");
    assert_eq!(told(2, 1e6), "+1 MiB and +100000 s a round");
}
