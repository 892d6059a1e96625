//! The merged adapter's largest rank where it is left to the planner.

use super::*;

fn left_open(deadline: Deadline) -> PlanSettings {
    PlanSettings { server_rank: None, coverage: 0, ..settings(deadline) }
}

fn planned(silos: impl IntoIterator<Item = SiloProfile>, settings: &PlanSettings) -> Result<Plan, PlanError> {
    plan(&toy_model(), &profiles(silos), &importance([0.5, 0.5]), settings)
}

fn told(plan: &Plan) -> String {
    let [chosen] = &plan.chosen[..] else { panic!("{:?}", plan.chosen) };
    chosen.to_string()
}

/// At ranks 1, 2 and 4 on both weights u is 1/2, 2/3 and 4/5, and the progress of a round 0.1 + 0.9·u: 0.55, 0.7 and 0.82. All
/// have batch 8, so rank 1 takes 0.82/0.55 times as long as rank 4, rank 2 0.82/0.7 times.
#[test]
fn where_time_is_ample_the_largest_rank_is_chosen_and_the_others_are_told() {
    let settings = left_open(Deadline::Seconds(1e6));
    let open = planned([silo("a", 10, 1.0)], &settings).unwrap();
    let expected =
        "federation.server_rank = 4: the federation is expected to be soonest done; 1 would take 49 % longer, 2 17 %";
    assert_eq!((open.server_rank, told(&open).as_str()), (4, expected));
    let given = planned([silo("a", 10, 1.0)], &PlanSettings { server_rank: Some(4), ..settings }).unwrap();
    assert_eq!(given, Plan { chosen: vec![], ..open });
}

/// A link of 1 kbit/s and 6.5 s beside the names of tensors. With rank R on both weights, transfers take 1.024·R + 0.512 s, a
/// round at batch 8 2.45 + 2.4·R and one at batch 4 1.25 + 1.2·R beside that: rank 1 has time for batch 8, rank 2 for batch 4.
/// With rank 4 on the server the head at batch 2 takes 2.81 s; both weights take 2 + 0.356 s a unit of rank more, so each
/// trains at rank 2. Alone at batch b a silo takes (1 + 8/b)/progress rounds: 2/0.55, 3/0.7 and 5/0.7.
#[test]
fn over_a_slow_link_a_small_rank_leaves_time_for_a_larger_batch() {
    let slow = SiloProfile { bandwidth_mbps: 1e-3, ..silo("a", 10, 1.0) };
    let aim_s = 6.5 + slow.transfer_s(names_bytes());
    let plan = planned([slow], &left_open(Deadline::Seconds(aim_s / DEADLINE_SHARE))).unwrap();
    let expected =
        "federation.server_rank = 1: the federation is expected to be soonest done; 2 would take 18 % longer, 4 96 %";
    assert_eq!((plan.server_rank, told(&plan).as_str()), (1, expected));
    let chosen = &plan.silos[&"a".into()];
    assert_eq!((chosen.batch_size, chosen.ranks.values().copied().collect::<Vec<_>>()), (8, vec![1, 1]));
}

/// The same link for four silos. Their noise averages out: 1 + 8/b is 1 + 8/(4·b), which is 1.25 at batch 8, 1.5 at batch 4 and 2
/// at batch 2, so that rank 1 takes 1.25/0.55 rounds, rank 2 1.5/0.7 and rank 4 2/0.7. Where one silo in four takes part in
/// a round, all is as if it were alone.
#[test]
fn the_more_silos_make_a_round_the_less_a_batch_counts() {
    let slow = |name| SiloProfile { bandwidth_mbps: 1e-3, ..silo(name, 10, 1.0) };
    let aim_s = 6.5 + slow("a").transfer_s(names_bytes());
    let with = |cohort_fraction| {
        let settings = PlanSettings { cohort_fraction, ..left_open(Deadline::Seconds(aim_s / DEADLINE_SHARE)) };
        told(&planned(["a", "b", "c", "d"].map(slow), &settings).unwrap())
    };
    let told = |which: &str| format!("federation.server_rank = {which}");
    assert_eq!(with(1.0), told("2: the federation is expected to be soonest done; 1 would take 6 % longer, 4 33 %"),);
    assert_eq!(with(0.25), told("1: the federation is expected to be soonest done; 2 would take 18 % longer, 4 96 %"),);
}

/// Against every rank of the menu as if it were given, each with its own automatic deadline and what that brings by the silos'
/// ranks and batches. Values of 400 bytes, so that the names of tensors do not decide.
#[test]
fn the_server_rank_is_that_with_which_the_federation_is_soonest_done() {
    let mut chosen = Vec::new();
    for bandwidth_mbps in [0.03, 0.1, 0.3, 1.0, 100.0] {
        let silos = [("fast", 4.0), ("mid", 1.0), ("slow", 0.5)];
        let silos = silos.map(|(name, speed)| {
            let mut profile = SiloProfile { bandwidth_mbps, ..silo(name, 10, speed) };
            profile.device.adapter_s_per_token_rank = 1e-4;
            profile
        });
        let within_s = 40.0 + 3.0 * silos[0].transfer_s(names_bytes());
        for finish in [None, Some(Finish { within_h: within_s / 3600.0, rounds: 3 })] {
            let settings = PlanSettings { finish, value_bytes: 400.0, ..left_open(Deadline::Auto) };
            let needed = |plan: &Plan| {
                let rounds = |silo: &SiloPlan| {
                    let trained: f64 = silo.ranks.values().map(|&rank| 0.5 * rank_value(rank)).sum();
                    1.0 / 3.0 / (0.1 + 0.9 * trained)
                };
                let noise = |silo: &SiloPlan| 8.0 / 9.0 / silo.batch_size as f64;
                let noise: f64 = plan.silos.values().map(noise).sum();
                plan.deadline_s * (1.0 + noise) * plan.silos.values().map(rounds).sum::<f64>()
            };
            let given = [1, 2, 4].map(|rank| planned(silos.clone(), &settings.up_to(rank)).ok());
            let least = given.iter().flatten().min_by(|a, b| needed(a).total_cmp(&needed(b))).unwrap();
            let open = planned(silos.clone(), &settings).unwrap();
            assert_eq!(*least, Plan { chosen: vec![], ..open.clone() }, "at {bandwidth_mbps} Mbit/s");
            chosen.push(open.server_rank);
        }
    }
    assert!(chosen.first() < chosen.last(), "{chosen:?}");
}

/// The head takes 64 bytes both ways, the merged adapter 64 a rank, a unit of rank that trains 32 more: of 200 bytes rank 1 on
/// the server leaves both weights rank 1, rank 2 the head alone (0.05 for 0.275), and rank 4 nothing.
#[test]
fn a_rank_that_leaves_a_silo_no_plan_is_left_out() {
    let with = |bytes: f64| {
        let data_cap_mib = Some((bytes + names_bytes()) / MIB);
        let capped = SiloProfile { data_cap_mib, ..silo("a", 10, 1.0) };
        planned([capped], &left_open(Deadline::Seconds(1e6)))
    };
    let plan = with(200.0).unwrap();
    let expected = "federation.server_rank = 1: the federation is expected to be soonest done; 2 would take 450 % longer; with 4 \
                    some silo has no plan";
    assert_eq!((plan.server_rank, told(&plan).as_str()), (1, expected));
    let PlanError::Data { needs_mib, .. } = with(100.0).unwrap_err() else { panic!("data is short") };
    assert!((needs_mib * MIB - names_bytes() - 128.0).abs() < 1e-6, "the smallest rank's error: {needs_mib}");
}

#[test]
fn a_menu_of_one_rank_or_none_leaves_no_choice() {
    let with = |ranks: &[usize]| {
        let mut settings = left_open(Deadline::Auto);
        settings.menu.ranks = ranks.to_vec();
        planned([silo("a", 10, 1.0)], &settings).unwrap()
    };
    let one = with(&[4]);
    assert_eq!((one.server_rank, told(&one).as_str()), (4, "federation.server_rank = 4: adapter.ranks have no other"));
    let none = with(&[]);
    assert!(none.server_rank == 1 && none.silos[&"a".into()].ranks.is_empty(), "{none:?}");
}
