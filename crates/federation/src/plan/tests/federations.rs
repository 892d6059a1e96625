//! Federations of 4 to 20 silos whose optimum HiGHS found, from a program that `scripts/golden_plans.py` made of the same
//! numbers by formulas of its own.

use super::*;
use crate::plan::coverage::without_solver;
use crate::plan::numbers::Numbers;

struct Instance {
    model: ModelSpec,
    importance: BTreeMap<WeightId, f64>,
    profiles: BTreeMap<SiloId, SiloProfile>,
    settings: PlanSettings,
}

fn instance(seed: u64) -> Instance {
    let mut numbers = Numbers(1_000_000 + seed);
    let (count, layers, coverage) = (4 + numbers.below(17), 2 + numbers.below(2), 2 + numbers.below(2));
    let candidate = |layer: usize, kind: &str, outputs: usize| CandidateWeight {
        id: WeightId::new(format!("layer.{layer}.{kind}")),
        layer,
        kind: kind.into(),
        inputs: 16,
        outputs,
    };
    let of_layer = |layer| [candidate(layer, "query", 16), candidate(layer, "output", 64)];
    let model = ModelSpec {
        layers: layers as usize,
        candidates: (0..layers as usize).flat_map(of_layer).collect(),
        base_bytes: [(BaseFormat::F32, 400_000), (BaseFormat::Nf4, 60_000)].into(),
        ..toy_model()
    };
    let scores: Vec<f64> =
        (0..model.candidates.len()).map(|m| (100 * (1 + numbers.below(99)) + m as u64) as f64).collect();
    let all: f64 = scores.iter().sum();
    let importance = model.candidates.iter().zip(scores).map(|(c, score)| (c.id.clone(), score / all)).collect();
    let deadline = (200 + numbers.below(800)) as f64;
    let values: usize = model.candidates.iter().map(|c| c.inputs + c.outputs).sum();
    let profile = |numbers: &mut Numbers, place: u64| {
        let examples = 50 + numbers.below(450);
        let tokens = 100 + numbers.below(1100) as usize;
        let speed = (50 + numbers.below(150)) as f64 / 100.0;
        let extra = numbers.share(100, 100) * (8 * values) as f64;
        let bytes = 4.0 * ((2 * 8 + 8 * values) as f64 + extra) + beside_values(&model).iter().sum::<f64>();
        let data_cap_mib = (numbers.below(3) == 0).then_some(bytes / MIB);
        let mut profile = silo(&format!("silo-{place:02}"), tokens, speed);
        profile.device.adapter_s_per_token_rank = 1e-4;
        SiloProfile { examples, data_cap_mib, ..profile }
    };
    let profiles = profiles((0..count).map(|place| profile(&mut numbers, place)));
    let mut settings = settings(Deadline::Seconds(deadline));
    settings.menu.recompute = vec![false, true];
    settings.menu.ranks = vec![2, 4, 8];
    settings.menu.batch_value = BATCH_VALUE;
    (settings.server_rank, settings.coverage) = (Some(8), coverage as usize);
    Instance { model, importance, profiles, settings }
}

/// The prices alone, without the solver, come within 1 % of the optimum of every federation; their bound is above it, and the
/// plan that people get is no worse.
#[test]
fn the_decomposition_alone_is_within_one_percent_of_the_optimum_of_highs() {
    let golden: Vec<f64> =
        include_str!("../golden/federations.txt").lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(golden.len(), 40);
    let (mut worst, mut loosest, mut worst_plan) = (0f64, 0f64, 0f64);
    for (seed, optimum) in golden.into_iter().enumerate() {
        let Instance { model, importance, profiles, settings } = instance(seed as u64);
        let Deadline::Seconds(deadline) = settings.deadline else { panic!("given") };
        let tuning = Tuning::default();
        let problem = |profile| problem(&model, profile, &importance, &settings, &tuning, deadline * DEADLINE_SHARE);
        let problems: Vec<SiloProblem<'_>> = profiles.values().map(problem).collect();
        let weights = Weights::of(&problems[0]);
        let searches: Vec<Search<'_, '_>> = problems.iter().map(|problem| Search::new(problem, &weights)).collect();
        let (objective, bound) = without_solver(&weights, &searches, settings.coverage).unwrap();
        assert!(objective <= optimum + 1e-6, "federation {seed}: {objective}, HiGHS has {optimum}");
        assert!(bound >= optimum - 1e-6, "federation {seed}: a bound of {bound} under {optimum}");
        let planned = plan(&model, &profiles, &importance, &settings).unwrap().optimality;
        assert!(planned.objective >= objective - 1e-9 && planned.objective <= optimum + 1e-6, "federation {seed}");
        assert!(planned.bound >= optimum - 1e-6, "federation {seed}: {planned:?} under {optimum}");
        worst = worst.max((optimum - objective) / optimum);
        loosest = loosest.max((bound - optimum) / optimum);
        worst_plan = worst_plan.max((optimum - planned.objective) / optimum);
    }
    println!("at most {worst:.2e} below the optimum, bounds {loosest:.2e} above it; plans {worst_plan:.2e} below");
    assert!(worst <= 0.01, "{worst} below the optimum");
}
