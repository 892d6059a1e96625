//! Planning silos anew, one by one, while the others keep their plans.

use super::choose::{Search, shortfall};
use super::table::Weights;
use super::{DEADLINE_SHARE, EXPLAINED_SILOS, Enrolled, Importance, PlanError, PlanSettings, Tuning};
use super::{View, check, coverage, refusal, silo_plan};
use fedpipe_core::{ModelSpec, Optimality, Plan, SiloId, SiloPlan, SiloProfile, WeightId};
use std::collections::BTreeMap;

/// Plans `silos` again under the deadline and the server's rank of `plan`, in which all others stay; `profiles` say what each
/// can do now. An important weight that the others leave to too few silos is worth I_m/κ of the federation's objective to
/// whoever trains it. Gives the silos that have no plan within their budgets, with the reason: they keep the one that they had.
///
/// The bound of [`Plan::optimality`] stays that of the last time when all were planned together, at the speeds of then.
///
/// # Errors
/// When the settings offer nothing to choose from.
pub fn again<'a>(
    model: &ModelSpec,
    profiles: &BTreeMap<SiloId, SiloProfile>,
    importance: impl Into<Importance<'a>>,
    settings: &PlanSettings,
    plan: &mut Plan,
    silos: &[SiloId],
) -> Result<Vec<(SiloId, PlanError)>, PlanError> {
    let importance = importance.into();
    check(settings, &importance)?;
    let settings = &settings.up_to(plan.server_rank);
    let tuning = &Tuning::of(&settings.tuning, &model.candidates, &settings.menu.ranks)?;
    let model = &*tuning.model(model);
    let enrolled = Enrolled { model, profiles, importance, tuning };
    let shared = enrolled.weights(settings)?;
    let mut covered = Covered::of(model, &shared, profiles, settings.coverage, plan);
    let mut refused = Vec::new();
    for silo in silos {
        let Some(profile) = profiles.get(silo) else { continue };
        let view = View::of(model, profile, &importance, &shared);
        let problem = enrolled.problem(&view, settings, plan.deadline_s * DEADLINE_SHARE);
        let search = Search::new(&problem, &view.weights);
        let bonus = covered.bonus(silo, search.no_bonus(), plan);
        let Some(found) = search.best(&bonus, |_| true) else {
            refused.push((silo.clone(), refusal(&problem, plan.deadline_s, shortfall(&problem))));
            continue;
        };
        let apart = bonus.iter().all(|&gain| gain == 0.0);
        let new = silo_plan(&search, found, apart, profiles.len() <= EXPLAINED_SILOS, plan.deadline_s);
        covered.replace(plan.silos.insert(new.silo.clone(), new.clone()).as_ref(), &new);
    }
    plan.optimality = covered.optimality(plan);
    Ok(refused)
}

/// The important weights and how many silos train each, kept while plans are replaced.
struct Covered<'a> {
    /// Row of the weights, name, what a missing silo costs, silos that train it.
    important: Vec<(usize, &'a WeightId, f64, usize)>,
    least: usize,
    shares: BTreeMap<&'a SiloId, f64>,
}

impl<'a> Covered<'a> {
    fn of(
        model: &'a ModelSpec,
        shared: &Weights,
        profiles: &'a BTreeMap<SiloId, SiloProfile>,
        coverage: usize,
        plan: &Plan,
    ) -> Self {
        let least = coverage.min(profiles.len());
        let rows = if least > 0 { coverage::important(shared) } else { vec![] };
        let weight = |row: usize| {
            let weight = &model.candidates[shared.rows[row].candidate].id;
            let training = plan.silos.values().filter(|silo| silo.ranks.contains_key(weight)).count();
            (row, weight, shared.rows[row].importance / least as f64, training)
        };
        let examples: Vec<f64> = profiles.values().map(|profile| profile.examples as f64).collect();
        let shares = profiles.keys().zip(coverage::shares(&examples)).collect();
        Self { important: rows.into_iter().map(weight).collect(), least, shares }
    }

    /// What each row gains `silo` by being trained at all, from none on.
    fn bonus(&self, silo: &SiloId, mut bonus: Vec<f64>, plan: &Plan) -> Vec<f64> {
        let share = self.shares.get(silo).copied().unwrap_or(1.0);
        for &(row, weight, price, training) in &self.important {
            let itself = plan.silos.get(silo).is_some_and(|plan| plan.ranks.contains_key(weight));
            if training - usize::from(itself) < self.least {
                bonus[row] = price / share;
            }
        }
        bonus
    }

    fn replace(&mut self, before: Option<&SiloPlan>, after: &SiloPlan) {
        for (_, weight, _, training) in &mut self.important {
            let trains = |plan: &SiloPlan| usize::from(plan.ranks.contains_key(*weight));
            *training = *training + trains(after) - before.map_or(0, trains);
        }
    }

    fn optimality(&self, plan: &Plan) -> Optimality {
        let gained = self.shares.iter().filter_map(|(silo, share)| Some(share * plan.silos.get(*silo)?.objective));
        let missing = |training: usize| self.least.saturating_sub(training);
        let lost = self.important.iter().map(|&(_, _, price, training)| price * missing(training) as f64);
        let objective = gained.sum::<f64>() - lost.sum::<f64>();
        let lacking = self.important.iter().filter(|(.., training)| missing(*training) > 0);
        let uncovered = lacking.map(|(_, weight, ..)| (*weight).clone()).collect();
        Optimality { objective, bound: plan.optimality.bound.max(objective), uncovered }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Deadline, plan, tests};
    use super::*;
    use fedpipe_core::BaseFormat;
    use fedpipe_testkit::{toy_model, toy_profile};

    fn settings(deadline_s: f64, coverage: usize) -> PlanSettings {
        let mut settings = PlanSettings { coverage, ..tests::settings(Deadline::Seconds(deadline_s)) };
        settings.menu.formats = vec![BaseFormat::F32];
        settings
    }

    fn importance() -> BTreeMap<WeightId, f64> {
        [("layer.0.query".into(), 0.4), ("layer.1.query".into(), 0.6)].into()
    }

    fn two_silos() -> BTreeMap<SiloId, SiloProfile> {
        ["a", "b"].map(|name| (name.into(), SiloProfile { speed: 1.0, ..toy_profile(name) })).into()
    }

    /// With nothing changed the plan is the one of all together; with a slower silo it is what planning all would give,
    /// since nothing ties the two.
    #[test]
    fn a_silo_alone_gets_what_planning_all_would_give_it() {
        let (model, importance, settings) = (toy_model(), importance(), settings(20.0, 0));
        let mut profiles = two_silos();
        let first = plan(&model, &profiles, &importance, &settings).unwrap();
        let mut same = first.clone();
        assert_eq!(again(&model, &profiles, &importance, &settings, &mut same, &["b".into()]), Ok(vec![]));
        assert_eq!(same, first);
        profiles.get_mut(&"b".into()).unwrap().speed = 0.2;
        let all = plan(&model, &profiles, &importance, &settings).unwrap();
        assert_eq!(again(&model, &profiles, &importance, &settings, &mut same, &["b".into()]), Ok(vec![]));
        assert_eq!(same.silos, all.silos);
        assert_ne!(same.silos[&"b".into()], first.silos[&"b".into()]);
        assert!((same.optimality.objective - all.optimality.objective).abs() < 1e-12);
        assert_eq!(same.optimality.bound, first.optimality.bound, "that of the last time for all");
    }

    /// The upper weight is important (0.6 of all); with a gone from it, it is worth half its importance over b's share to b.
    #[test]
    fn what_the_others_leave_is_worth_more() {
        let (model, importance, mut settings) = (toy_model(), importance(), settings(20.0, 2));
        let profiles = two_silos();
        let mut plan = plan(&model, &profiles, &importance, &settings).unwrap();
        let upper: WeightId = "layer.1.query".into();
        plan.silos.get_mut(&"a".into()).unwrap().ranks.clear();
        let b: SiloId = "b".into();
        // The batch is worth 0.6, all ranks 0.5, and 4.5 s are enough for one of the two; the upper weight's worth for the
        // others is ½·0.6 over a share of ½.
        settings.menu.batch_value = 0.6;
        settings.menu.ranks = vec![1];
        settings.menu.batch_sizes = vec![2, 8];
        let narrow = |plan: &Plan| Plan { deadline_s: 4.5 / DEADLINE_SHARE, ..plan.clone() };
        let (mut tied, mut apart) = (narrow(&plan), narrow(&plan));
        again(&model, &profiles, &importance, &settings, &mut tied, std::slice::from_ref(&b)).unwrap();
        settings.coverage = 0;
        again(&model, &profiles, &importance, &settings, &mut apart, std::slice::from_ref(&b)).unwrap();
        assert!(tied.silos[&b].ranks.contains_key(&upper) && !apart.silos[&b].ranks.contains_key(&upper));
        assert_eq!(tied.optimality.uncovered, [upper], "b alone is one of two");
    }

    #[test]
    fn a_silo_without_a_plan_keeps_the_one_that_it_had() {
        let (model, importance, settings) = (toy_model(), importance(), settings(20.0, 1));
        let mut profiles = two_silos();
        let mut plan = plan(&model, &profiles, &importance, &settings).unwrap();
        let before = plan.clone();
        profiles.get_mut(&"b".into()).unwrap().speed = 1e-3;
        let refused = again(&model, &profiles, &importance, &settings, &mut plan, &["b".into()]).unwrap();
        assert!(matches!(&refused[..], [(silo, PlanError::Deadline { .. })] if silo.as_str() == "b"), "{refused:?}");
        assert_eq!(plan.silos, before.silos);
    }
}
