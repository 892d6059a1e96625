//! What a person decides beside memory and deadline: weights, data, the end of the run.

use super::*;

fn ample() -> PlanSettings {
    settings(Deadline::Seconds(1e6))
}

fn tuned(always: &[&str], never: &[&str]) -> TuningPatterns {
    let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
    TuningPatterns { always: owned(always), never: owned(never) }
}

fn one(settings: &PlanSettings, profile: SiloProfile) -> Result<SiloPlan, PlanError> {
    let mut plan = plan(&toy_model(), &profiles([profile]), &importance([0.02, 0.98]), settings)?;
    Ok(plan.silos.remove(&"a".into()).unwrap())
}

#[test]
fn a_weight_that_must_not_train_does_not_and_one_that_must_does_at_the_cost_of_others() {
    let with = |always: &[&str], never: &[&str]| {
        let mut settings = ample();
        settings.tuning = tuned(always, never);
        settings.menu.batch_sizes = vec![8];
        one(&settings, silo("a", 700, 1.0)).unwrap()
    };
    // As much memory as the upper layer takes (see `little_memory_goes_to_the_important_weight`).
    let free = with(&[], &[]);
    assert_eq!(free.ranks, [("layer.1.query".into(), 4)].into());
    let barred = with(&[], &["*.1.*"]);
    assert!(barred.ranks.is_empty(), "{:?}", barred.ranks);
    assert!(barred.reasons.contains(&"decided beforehand by plan.never_tune: 1 weight".into()), "{:?}", barred.reasons);
    assert!(with(&[], &["*"]).ranks.is_empty());
    // A batch of four leaves room for both layers.
    let mut settings = ample();
    settings.tuning = tuned(&["*.0.*"], &["layer.1.query"]);
    let forced = one(&settings, silo("a", 700, 1.0)).unwrap();
    assert_eq!((forced.ranks.len(), forced.batch_size), (1, 4));
    assert!(forced.ranks.contains_key(&"layer.0.query".into()));
    let said = "decided beforehand by plan.always_tune: 1 weight and plan.never_tune: 1 weight";
    assert!(forced.reasons.iter().any(|reason| reason == said), "{:?}", forced.reasons);
}

#[test]
fn weights_that_must_train_and_do_not_fit_are_an_error_of_their_budget() {
    let mut settings = ample();
    settings.menu.batch_sizes = vec![8];
    settings.tuning = tuned(&["query"], &[]);
    let error = one(&settings, silo("a", 700, 1.0)).unwrap_err().to_string();
    // nf4 at batch 8 of 700 tokens: 600 + 4·(8 + 2·8·4) + 12·(8 + 2·8) + 5600·(2·100 + 50 + 2) + 1000 = 1,413,472 bytes.
    assert_eq!(
        error,
        "silo a: the smallest plan (head and 2 weights of always_tune at their smallest ranks, smallest batch, leanest base \
         format) takes 1.3 MiB, 0.4 MiB more than plans may take of its 1 MiB (95 %); raise its memory_mib to at least 2, allow \
         a smaller batch or a base format of fewer bits, or shorten max_length, or name fewer weights in plan.always_tune"
    );
    let mut enough = silo("a", 700, 1.0);
    enough.memory_mib = 2;
    assert_eq!(one(&settings, enough).unwrap().ranks.len(), 2);

    let head_only = one(&PlanSettings { tuning: tuned(&[], &["*"]), ..settings.clone() }, silo("a", 10, 1.0)).unwrap();
    let between = head_only.time.total() / DEADLINE_SHARE * 1.01;
    settings.deadline = Deadline::Seconds(between);
    let error = one(&settings, silo("a", 10, 1.0)).unwrap_err();
    assert!(error.to_string().contains("name fewer weights in plan.always_tune"), "{error}");
    let PlanError::Deadline { needs_s, .. } = error else { panic!("{error}") };
    settings.deadline = Deadline::Seconds(needs_s / DEADLINE_SHARE * (1.0 + 1e-9));
    let least = one(&settings, silo("a", 10, 1.0)).unwrap();
    assert_eq!(least.ranks, [("layer.0.query".into(), 1), ("layer.1.query".into(), 1)].into());
    // The automatic deadline is as long as that takes.
    let snail = profiles([silo("a", 10, 4.0), silo("b", 10, 4.0), silo("snail", 10, 0.01)]);
    settings.deadline = Deadline::Auto;
    let auto = plan(&toy_model(), &snail, &importance([0.5, 0.5]), &settings).unwrap();
    assert!(
        auto.deadline_reason.contains("shortest that leave silo snail its smallest plan"),
        "{}",
        auto.deadline_reason
    );
    assert_eq!(auto.silos[&"snail".into()].ranks.len(), 2);
}

/// The head is 8 values, a unit of rank of a weight 8, the merged adapter 4 ranks on both weights: 4·(2·8 + 64 + 8·Σ r) bytes.
#[test]
fn a_cap_on_data_bounds_the_ranks_and_is_among_the_reasons() {
    let capped = |cap_bytes: f64| {
        let profile = SiloProfile { data_cap_mib: Some((cap_bytes + names_bytes()) / MIB), ..silo("a", 10, 1.0) };
        one(&ample(), profile)
    };
    let all = capped(4.0 * (16.0 + 64.0 + 64.0)).unwrap();
    assert_eq!(all.ranks.values().sum::<usize>(), 8);
    let some = capped(4.0 * (16.0 + 64.0 + 40.0)).unwrap();
    assert_eq!(some.ranks, [("layer.0.query".into(), 1), ("layer.1.query".into(), 4)].into());
    let [_, binding, worth, ..] = some.reasons.as_slice() else { panic!("{:?}", some.reasons) };
    assert!(binding.starts_with("data binds: 0.00 of 0.00 MiB sent and received, 0.0 % left"), "{binding}");
    assert!(binding.contains("memory has room") && binding.contains("time has room"), "{binding}");
    assert!(worth.contains("MiB of data a round: +"), "{worth}");
    assert!(capped(4.0 * 80.0).unwrap().ranks.is_empty());
    let error = capped(4.0 * 70.0).unwrap_err();
    let PlanError::Data { needs_mib, cap_mib, .. } = &error else { panic!("{error}") };
    assert!(((needs_mib - cap_mib) * MIB - 40.0).abs() < 1e-6, "{error:?}");
    let error = PlanError::Data { silo: "a".into(), smallest: HEAD_ONLY.into(), needs_mib: 9.501, cap_mib: 8.0 };
    assert_eq!(
        error.to_string(),
        "silo a: the smallest plan (head only) moves up to 9.50 MiB a round, 1.50 MiB more than its data_cap_mib of 8; raise it \
         to at least 9.51, let the merged adapter have a lower rank (adapter.ranks, federation.server_rank), or choose a codec \
         of fewer bytes a value"
    );
}

#[test]
fn a_run_that_must_finish_gives_each_round_an_equal_part_of_the_time() {
    let all = profiles([
        silo("a", 10, 1.0),
        silo("b", 10, 1.0),
        silo("c", 10, 1.0),
        silo("snail", 10, 0.01),
        silo("slow", 10, 0.02),
    ]);
    let with = |deadline, round_s: f64| {
        let finish = Some(Finish { within_h: 8.0 * round_s / 3600.0, rounds: 8 });
        plan(&toy_model(), &all, &importance([0.5, 0.5]), &PlanSettings { finish, ..settings(deadline) })
    };
    let unlimited = plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings(Deadline::Auto)).unwrap();
    let roomy = with(Deadline::Auto, 2.0 * unlimited.deadline_s).unwrap();
    assert_eq!((roomy.deadline_s, &roomy.silos), (unlimited.deadline_s, &unlimited.silos));
    assert!(roomy.deadline_reason.contains("; 8 rounds of it take "), "{}", roomy.deadline_reason);
    // Less than the snail needs for its head.
    let error = with(Deadline::Auto, 60.0).unwrap_err();
    let PlanError::Finish { silo, needs_s, .. } = &error else { panic!("{error}") };
    assert_eq!(silo.as_str(), "snail");
    assert!(*needs_s < unlimited.deadline_s * DEADLINE_SHARE, "{error}");
    assert!(error.to_string().contains(", lower rounds to 4, lower local_steps, or leave the silo out"), "{error}");
    let given = with(Deadline::Seconds(3.0 * unlimited.deadline_s), 2.0 * unlimited.deadline_s).unwrap();
    assert!((given.deadline_s - 2.0 * unlimited.deadline_s).abs() < 1e-9);
    assert!(given.deadline_reason.starts_with("given in the configuration; cut to "), "{}", given.deadline_reason);
    // What the error says would do, does.
    let PlanError::Finish { finish, needs_s, .. } = error else { panic!("matched above") };
    let settings = |finish| PlanSettings { finish: Some(finish), ..settings(Deadline::Auto) };
    let with = |finish| plan(&toy_model(), &all, &importance([0.5, 0.5]), &settings(finish));
    assert!(with(Finish { rounds: 4, ..finish }).is_ok() && with(Finish { rounds: 5, ..finish }).is_err());
    let hours = (needs_s / DEADLINE_SHARE * 8.0 / 36.0).ceil() / 100.0;
    assert!(
        with(Finish { within_h: hours, ..finish }).is_ok()
            && with(Finish { within_h: hours - 0.01, ..finish }).is_err()
    );
    assert!(with(Finish { rounds: 8, within_h: f64::NAN }).unwrap_err().to_string().contains("finish_within_h"));
}
