use super::*;
use fedpipe_core::{BaseFormat, CandidateWeight, Optimality, Seed, WeightId};
use fedpipe_testkit::{toy_model, toy_profile};

mod budgets;
mod combinations;
mod federations;
mod server_ranks;

/// Bytes of a round's two messages beside values.
fn names_bytes() -> f64 {
    beside_values(&toy_model()).iter().sum()
}

pub(super) fn settings(deadline: Deadline) -> PlanSettings {
    let menu = Menu {
        batch_sizes: vec![2, 4, 8],
        formats: vec![BaseFormat::F32, BaseFormat::Nf4],
        recompute: vec![false],
        ranks: vec![1, 2, 4],
        batch_value: 0.1,
        step_multiples: vec![1],
        step_value: 0.1,
    };
    let tuning = TuningPatterns::default();
    let server_rank = Some(4);
    PlanSettings {
        menu,
        server_rank,
        local_steps: 5,
        cohort_fraction: 1.0,
        value_bytes: 4.0,
        deadline,
        finish: None,
        coverage: 1,
        tuning,
    }
}

fn importance(values: [f64; 2]) -> BTreeMap<WeightId, f64> {
    [("layer.0.query".into(), values[0]), ("layer.1.query".into(), values[1])].into()
}

fn profiles(silos: impl IntoIterator<Item = SiloProfile>) -> BTreeMap<SiloId, SiloProfile> {
    silos.into_iter().map(|profile| (profile.silo.clone(), profile)).collect()
}

/// A silo of 1 MiB, so that memory is made scarce by longer texts: a token takes 50 bytes and 100 a layer.
fn silo(name: &str, tokens: usize, speed: f64) -> SiloProfile {
    let mut profile = SiloProfile { speed, ..toy_profile(name) };
    profile.lengths.mean = tokens as f64;
    profile.lengths.longest = tokens;
    profile
}

#[test]
fn room_for_everything_buys_everything() {
    let profiles = profiles([silo("a", 10, 1.0)]);
    let plan = plan(&toy_model(), &profiles, &importance([0.5, 0.5]), &settings(Deadline::Seconds(1e6))).unwrap();
    let silo = &plan.silos[&"a".into()];
    assert_eq!((silo.batch_size, silo.base_format), (8, BaseFormat::F32));
    assert_eq!(silo.ranks, [("layer.0.query".into(), 4), ("layer.1.query".into(), 4)].into());
    assert!((silo.objective - 0.9).abs() < 1e-12, "4/5 for the ranks and β for the batch: {}", silo.objective);
    assert!(silo.reasons[1].starts_with("no budget binds"), "{:?}", silo.reasons);
}

#[test]
fn little_memory_goes_to_the_important_weight() {
    // 8 texts of 700 tokens at 150 bytes are 0.84 of 1.05 MB; with the lower layer it would be 1.4 MB.
    let profiles = profiles([silo("a", 700, 1.0)]);
    let of = |values| {
        plan(&toy_model(), &profiles, &importance(values), &settings(Deadline::Seconds(1e6))).unwrap().silos
            [&"a".into()]
            .clone()
    };
    let upper = of([0.02, 0.98]);
    assert_eq!(upper.ranks.keys().map(WeightId::as_str).collect::<Vec<_>>(), ["layer.1.query"]);
    assert!(upper.reasons[1].starts_with("memory binds"), "{:?}", upper.reasons);
    // For the lower weight, the activations of both layers are worth a smaller batch.
    let lower = of([0.98, 0.02]);
    assert!(lower.ranks[&"layer.0.query".into()] == 4 && lower.batch_size < upper.batch_size);
}

/// 8 texts of 700 tokens: both layers take 5600·(2·100 + 50) = 1.4 MB when their inside is kept, and 5600·(2·10 + 100 + 50) =
/// 0.95 of the 0.996 MB that plans may take when it is computed again.
#[test]
fn a_silo_with_little_memory_computes_again_for_a_larger_batch_or_rank_when_time_allows() {
    let profiles = profiles([silo("a", 700, 1.0)]);
    let of = |recompute: &[bool], batch_sizes: &[usize], deadline_s: f64| {
        let mut settings = settings(Deadline::Seconds(deadline_s));
        (settings.menu.recompute, settings.menu.batch_sizes) = (recompute.to_vec(), batch_sizes.to_vec());
        plan(&toy_model(), &profiles, &importance([0.5, 0.5]), &settings).unwrap().silos[&"a".into()].clone()
    };
    let ample = 1e6;
    let kept = of(&[false], &[2, 4, 8], ample);
    let chosen = of(&[false, true], &[2, 4, 8], ample);
    assert!(!kept.recompute && kept.batch_size == 4 && kept.ranks.len() == 2, "{kept:?}");
    assert!(chosen.recompute && chosen.batch_size == 8 && chosen.ranks.len() == 2, "{chosen:?}");
    assert!(chosen.reasons[0].contains("with activations computed again"), "{:?}", chosen.reasons);
    let kept_instead = "5 steps of 4 texts over f32, the best with another batch and with activations kept";
    assert!(chosen.reasons.iter().any(|reason| reason.contains(kept_instead)), "{:?}", chosen.reasons);
    // Just enough time for what is kept: the larger batch would be late, so nothing is computed again.
    let tight = of(&[false, true], &[2, 4, 8], kept.time.total() / DEADLINE_SHARE * (1.0 + 1e-6));
    assert_eq!((tight.recompute, tight.batch_size, tight.objective), (false, 4, kept.objective));

    // With the batch given it is ranks of the lower layer that memory lacks.
    let (kept, chosen) = (of(&[false], &[8], ample), of(&[false, true], &[8], ample));
    assert!(!kept.recompute && kept.ranks.len() == 1 && chosen.recompute && chosen.ranks.len() == 2);
    let tight = of(&[false, true], &[8], kept.time.total() / DEADLINE_SHARE * (1.0 + 1e-6));
    assert!(!tight.recompute && tight.objective >= kept.objective, "{tight:?}");
    // And where nothing is gained by it, nothing is computed twice.
    assert!(!of(&[false, true], &[2], ample).recompute && of(&[true], &[2], ample).recompute);
}

/// Ranks are worth the same in all; twice the steps are worth 0.1, and the largest of three batches is. So four times the steps
/// of the smallest batch (0.2) are before the largest batch (0.1), but not where they would go through the texts more than
/// once: 5 · 4 steps of 2 texts are 40.
#[test]
fn a_silo_with_time_makes_more_steps_of_the_smallest_batch_once_through_its_texts_at_most() {
    let of = |examples: u64, step_multiples: &[usize], deadline_s: f64| {
        let mut settings = settings(Deadline::Seconds(deadline_s));
        settings.menu.step_multiples = step_multiples.to_vec();
        let silo = SiloProfile { examples, ..silo("a", 10, 1.0) };
        let plan = plan(&toy_model(), &profiles([silo]), &importance([0.5, 0.5]), &settings).unwrap();
        assert_eq!(plan.local_steps, 5);
        plan.silos[&"a".into()].clone()
    };
    let many = of(40, &[1, 2, 4], 1e6);
    assert_eq!((many.batch_size, many.local_steps), (2, 20));
    assert!((many.objective - 0.8 - 0.2).abs() < 1e-9, "{}", many.objective);
    assert_eq!(many.reasons[0], "20 steps of 2 texts over f32, 2 weights adapted: objective 1.0000");
    assert!(many.reasons.iter().any(|reason| reason.contains("with other steps")), "{:?}", many.reasons);
    // A larger batch would not fit the time, but goes with the fewest steps alone.
    let just = of(40, &[1, 2, 4], many.time.total() / DEADLINE_SHARE * (1.0 + 1e-6));
    assert_eq!((just.batch_size, just.local_steps), (2, 20));
    assert!(just.reasons.iter().any(|reason| reason.starts_with("no budget binds")), "{:?}", just.reasons);
    // The fewest steps are taken however few the texts are.
    for (examples, multiples) in [(39, &[1, 4][..]), (40, &[1]), (5, &[1, 2])] {
        assert_eq!(of(examples, multiples, 1e6).local_steps, 5, "{examples} texts");
    }
    // 5 steps of 8 texts are as many tokens as 20 of 2, and 15 steps' overhead of 10 ms less.
    let large = of(40, &[1], 1e6);
    assert_eq!((large.batch_size, large.memory.total() > many.memory.total()), (8, true));
    assert!((many.time.total() - large.time.total() - 0.15).abs() < 1e-9);
    let less = many.time.total() * (1.0 - 1e-6) / DEADLINE_SHARE;
    let in_time = of(40, &[1, 2, 4], less);
    assert!(in_time.time.total() < many.time.total() && in_time.objective < many.objective, "{in_time:?}");
}

#[test]
fn an_impossible_memory_says_by_how_much_and_what_to_do() {
    let profiles = profiles([silo("tiny", 20_000, 1.0)]);
    let error = plan(&toy_model(), &profiles, &importance([0.5, 0.5]), &settings(Deadline::Auto)).unwrap_err();
    // Head alone, batch 2, nf4: 600 + 4·(8 + 2·4·8) + 12·8 + 40,000·50 + 1000 = 2,001,984 bytes = 1.909 MiB.
    assert_eq!(
        error.to_string(),
        "silo tiny: the smallest plan (head only, smallest batch, leanest base format) takes 1.9 MiB, 1.0 MiB more than \
         plans may take of its 1 MiB (95 %); raise its memory_mib to at least 3, allow a smaller batch or a base format of fewer bits, or shorten max_length"
    );
}

#[test]
fn an_impossible_deadline_says_by_how_much_and_auto_raises_it() {
    let all = profiles([silo("a", 10, 1.0), silo("b", 10, 1.0), silo("snail", 10, 0.01)]);
    let plan_with = |deadline| plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings(deadline));
    // The head alone at batch 2: 100 tokens · (2 layers · 1 ms + 3 ms · 8/3), 5 steps · 10 ms, all by 100, and transfers.
    let error = plan_with(Deadline::Seconds(10.0)).unwrap_err();
    assert!(matches!(&error, PlanError::Deadline { silo, needs_s, .. } if silo.as_str() == "snail" && *needs_s > 50.0));
    let plan = plan_with(Deadline::Auto).unwrap();
    assert!(
        plan.deadline_reason.contains("shortest that leave silo snail its smallest plan"),
        "{}",
        plan.deadline_reason
    );
    // A third of all examples are the snail's: it is waited for until it trains.
    assert!(!plan.silos[&"snail".into()].ranks.is_empty());
    assert!(plan.silos.values().all(|silo| silo.time.total() <= plan.deadline_s * DEADLINE_SHARE * (1.0 + 1e-9)));
}

/// Against deadlines all over the range, each planned for as if it were given: the rounds that a silo's plan needs are worked
/// out here from its ranks, its batch and its steps, and none may bring the federation sooner to a target by more than a fifth.
#[test]
fn the_automatic_deadline_is_that_with_which_the_federation_is_soonest_done() {
    let all = profiles([silo("fast", 10, 4.0), silo("mid", 10, 1.0), silo("slow", 10, 0.5)]);
    let mut settings = settings(Deadline::Auto);
    settings.coverage = 0;
    settings.menu.step_multiples = vec![1, 2, 3, 4];
    let of = |deadline| {
        let settings = PlanSettings { deadline, ..settings.clone() };
        plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings)
    };
    let needed = |plan: &Plan| {
        let rounds = |silo: &SiloPlan| {
            let trained: f64 = silo.ranks.values().map(|&rank| 0.5 * rank_value(rank)).sum();
            (silo.local_steps as f64 / 5.0).powf(-0.85) / (0.1 + 0.9 * trained) / 3.0
        };
        // The silos hold as many texts each.
        let noise = plan.silos.values().map(|silo| 8.0 / 9.0 / silo.batch_size as f64).sum::<f64>();
        plan.deadline_s * (1.0 + noise) * plan.silos.values().map(rounds).sum::<f64>()
    };
    let auto = of(Deadline::Auto).unwrap();
    let least = needed(&auto);
    let mut compared = 0;
    for step in 0..60 {
        let Ok(given) = of(Deadline::Seconds(0.2 * 1.1f64.powi(step))) else { continue };
        compared += 1;
        // Eighteen deadlines are compared, so one between two of them may be better where a silo just then makes more steps.
        assert!(
            least <= 1.2 * needed(&given),
            "{}: {least}, {} at {}",
            auto.deadline_s,
            needed(&given),
            given.deadline_s
        );
    }
    assert!(compared > 20, "{compared}");
}

/// A silo that would compute again without end does so only within the rounds that the others need anyway.
#[test]
fn recomputation_does_not_make_rounds_longer() {
    let all = profiles([silo("small", 700, 1.0), silo("smaller", 900, 1.0), silo("fast", 700, 4.0)]);
    let with = |recompute: &[bool]| {
        let mut settings = settings(Deadline::Auto);
        settings.menu.recompute = recompute.to_vec();
        plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings).unwrap()
    };
    let (kept, chosen, forced) = (with(&[false]), with(&[false, true]), with(&[true]));
    assert_eq!(kept.deadline_s, chosen.deadline_s);
    assert!(forced.deadline_s >= kept.deadline_s);
    let objective = |plan: &Plan| plan.silos.values().map(|silo| silo.objective).sum::<f64>();
    assert!(objective(&chosen) >= objective(&kept));
}

/// 8 texts of 700 tokens that train both layers do not fit with their inside kept: 1.4 of 0.996 MB.
#[test]
fn a_silo_that_can_only_compute_again_is_planned_for_under_an_automatic_deadline() {
    let all = profiles([silo("small", 700, 1.0), silo("fast", 10, 4.0)]);
    let with = |recompute: &[bool]| {
        let mut settings = settings(Deadline::Auto);
        (settings.menu.recompute, settings.menu.batch_sizes) = (recompute.to_vec(), vec![8]);
        settings.tuning.always = vec!["query".into()];
        plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings)
    };
    let plan = with(&[false, true]).unwrap();
    assert!(plan.silos[&"small".into()].recompute && !plan.silos[&"fast".into()].recompute, "{plan:?}");
    let refused = with(&[false]).unwrap_err();
    assert!(matches!(&refused, PlanError::Memory { silo, .. } if silo.as_str() == "small"), "{refused}");
}

#[test]
fn a_batch_is_never_larger_than_the_silos_data() {
    let profile = SiloProfile { examples: 3, ..silo("a", 10, 1.0) };
    let plan = plan(&toy_model(), &profiles([profile]), &importance([0.5, 0.5]), &settings(Deadline::Auto)).unwrap();
    assert_eq!(plan.silos[&"a".into()].batch_size, 2);
}

#[test]
fn a_menu_that_offers_nothing_is_refused() {
    let all = profiles([silo("a", 10, 1.0)]);
    let with = |change: &dyn Fn(&mut PlanSettings)| {
        let mut settings = settings(Deadline::Auto);
        change(&mut settings);
        plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings).unwrap_err().to_string()
    };
    assert!(with(&|s| s.menu.batch_sizes.clear()).ends_with("batch_sizes is empty"));
    assert!(with(&|s| s.menu.recompute.clear()).ends_with("recompute is empty"));
    assert!(with(&|s| s.menu.ranks = vec![4, 2]).contains("ascending"));
    assert!(with(&|s| s.menu.formats = vec![BaseFormat::Nf2]).contains("allow one of those that were: f32, bf16, nf4"));
    assert!(with(&|s| s.deadline = Deadline::Seconds(0.0)).contains("deadline"));
    assert!(with(&|s| s.local_steps = 0).contains("local_steps"));
    let nobody = plan(&toy_model(), &BTreeMap::new(), &importance([0.5, 0.5]), &settings(Deadline::Auto));
    assert_eq!(nobody.unwrap_err(), PlanError::NoSilos);
}

#[test]
fn ranks_are_grouped_by_runs_of_equal_layers() {
    let model = model(4, 2);
    let ranks =
        [("layer.1.query", 8), ("layer.1.value", 4), ("layer.2.query", 8), ("layer.2.value", 4), ("layer.3.value", 2)];
    let ranks = ranks.map(|(weight, rank)| (weight.into(), rank)).into();
    assert_eq!(grouped_ranks(&model, &ranks), ["layers 1–2: query 8, value 4", "layer 3: value 2"]);
    assert_eq!(grouped_ranks(&model, &BTreeMap::new()), ["head only"]);
}

/// The exact text, so that a change to `plan.md` is seen.
#[test]
fn the_markdown_says_what_was_chosen_and_why() {
    let all = profiles([silo("a", 10, 1.0)]);
    let model = toy_model();
    let plan = plan(&model, &all, &importance([0.25, 0.75]), &settings(Deadline::Seconds(100.0))).unwrap();
    let text = markdown(&plan, &model, &all);
    let expected = "\
# Plan

Base model: toy with 2 layers and 1000 parameters. A round ends after 100.0 s: given in the configuration.

Objective of all silos together 0.9000, at most 0.00 % below the best there can be.

## Silo a

| choice |  |
|---|---:|
| batch | 8 |
| steps of a round | 5 |
| base format | f32 |
| activations | kept |
| adapted, kind and rank | layers 0–1: query 4 |
| trainable parameters | 72 |

| memory | MiB |
|---|---:|
| base | 0.00 |
| adapters | 0.00 |
| gradients | 0.00 |
| optimizer | 0.00 |
| activations | 0.02 |
| workspace | 0.00 |
| **predicted in all** | 0.03 |
| budget | 1 |

| round | s |
|---|---:|
| forward | 0.80 |
| backward | 1.60 |
| adapters | 9.60 |
| overhead of the steps | 0.05 |
| download | 0.01 |
| upload | 0.01 |
| **predicted in all** | 12.07 |

- 5 steps of 8 texts over f32, 2 weights adapted: objective 0.9000
- no budget binds, there is nothing larger to choose: 0.0 of 0.9 MiB used, 97.3 % left (95 % of its memory); 12.1 of 90.0 s used, 86.6 % left (90 % of \
the deadline of 100.0 s)
- runner-up: 5 steps of 8 texts over nf4, the best with another base format: objective 0.8700, base format -0.0300
- second runner-up: 5 steps of 4 texts over f32, the best with another batch: objective 0.8500, batch -0.0500
";
    assert_eq!(text, expected);
}

fn model(layers: usize, kinds: usize) -> ModelSpec {
    let kinds = ["query", "value", "output"][..kinds].iter();
    let candidates = (0..layers).flat_map(|layer| {
        kinds.clone().map(move |kind| CandidateWeight {
            id: WeightId::new(format!("layer.{layer}.{kind}")),
            layer,
            kind: (*kind).into(),
            inputs: 16,
            outputs: if *kind == "output" { 64 } else { 16 },
        })
    });
    ModelSpec { layers, candidates: candidates.collect(), ..toy_model() }
}

/// A federation of about the size in the project's example.
#[test]
fn four_silos_of_six_layers_are_planned_the_same_way_every_time() {
    let model = model(6, 3);
    let weights = model.candidates.iter().enumerate();
    let importance = weights.map(|(i, c)| (c.id.clone(), (1.0 + i as f64).recip())).collect();
    let all = profiles([silo("a", 100, 4.0), silo("b", 200, 1.0), silo("c", 300, 0.5), silo("d", 50, 0.25)]);
    let mut settings = settings(Deadline::Auto);
    settings.menu.batch_sizes = vec![1, 2, 4, 8, 16];
    settings.menu.ranks = vec![2, 4, 8, 16];
    let first = plan(&model, &all, &importance, &settings).unwrap();
    assert_eq!(first, plan(&model, &all, &importance, &settings).unwrap());
    for (silo, plan) in &first.silos {
        assert!(plan.memory.total() <= all[silo].budget_bytes() as f64);
        assert!(plan.time.total() <= first.deadline_s * DEADLINE_SHARE * (1.0 + 1e-9));
    }
}

/// Two silos that have room for one weight, and a federation that cares for the upper one: by their own scores alone each
/// trains what matters to it.
#[test]
fn silos_plan_by_their_own_importance_as_far_as_they_are_told_to() {
    let all = profiles(["a", "b"].map(|name| silo(name, 700, 1.0)));
    let federation = importance([0.02, 0.98]);
    let own = [("b".into(), importance([0.98, 0.02]))].into();
    let mut settings = settings(Deadline::Seconds(1e6));
    settings.coverage = 0;
    let lowest = |own_share: f64| {
        let plan = plan(&toy_model(), &all, Importance { federation: &federation, own: &own, own_share }, &settings);
        plan.unwrap()
            .silos
            .into_values()
            .map(|plan| plan.ranks.contains_key(&"layer.0.query".into()))
            .collect::<Vec<_>>()
    };
    assert_eq!(lowest(0.0), [false, false]);
    assert_eq!(lowest(1.0), [false, true], "a did not probe and plans by the federation's");
    let refused =
        plan(&toy_model(), &all, Importance { federation: &federation, own: &own, own_share: 1.5 }, &settings);
    assert!(matches!(refused, Err(PlanError::Menu(reason)) if reason.contains("own_importance")));
}
