//! FedPipe (arXiv 2404.06448): every silo trains the weights and ranks of its own plan, and the factors are merged by
//! weight over the silos that trained it.

use super::MethodSettings;
use crate::plan::spare_bytes;
use fedpipe_core::{
    Adapter, FoldError, Head, LowRank, Matrix, Method, Outcome, Purpose, RunState, SiloId, SiloPlan, Task, TrainWork,
    Update, WeightId, WeightedFactors, Work,
};
use std::collections::BTreeMap;

/// The method.
///
/// **What a silo gets.** For a weight of rank R on the server that the silo trains at rank r: the strongest min(r, R)
/// components train, completed by fresh ones (B zero, A random but the same in all silos) up to r. The remaining R − r
/// components, and all factors of weights that the silo does not train, go along as `fixed`: applied, not trained. So every
/// silo starts the round from the federation's model itself.
///
/// **How updates are merged.** For each weight, over the silos that trained it, with shares by examples: the trained
/// components beside that silo's own fixed remainder, which is not sent back but taken from the state. So the merge is
/// over whole models, and its rank is cut to the plan's `server_rank` once, by the aggregator. Weights that nobody trained
/// stay; the head is the mean by examples.
///
/// **When a plan changes.** Nothing of this hangs on the ranks of the round before: at other ranks a silo starts from the same
/// merged adapter, to rounding, and nothing is lost on the server. Silos keep nothing of their own between rounds.
///
/// **Why the remainder is kept.** Handing each silo the factors cut to its own rank, and merging what comes back, loses
/// everything that the small silos cannot hold: round by round the merged adapter collapses towards the smallest rank
/// among the silos that share a weight (arXiv 2602.13486). This is the project's own remedy; FedPipe's paper does not
/// treat it.
#[derive(Clone)]
pub struct FedPipe {
    settings: MethodSettings,
}

impl FedPipe {
    /// The name in configurations.
    pub const NAME: &'static str = "fedpipe";

    /// The method with its settings.
    pub fn new(settings: MethodSettings) -> Self {
        Self { settings }
    }

    fn work(&self, state: &RunState, plan: &SiloPlan) -> TrainWork {
        let round = state.round + 1;
        let init = state.seed.derive(Purpose::Init, round, None);
        let mut factors = BTreeMap::new();
        let mut fixed = BTreeMap::new();
        for candidate in &self.settings.model.candidates {
            let merged = state.adapter.factors.get(&candidate.id);
            let rank = plan.ranks.get(&candidate.id).copied().unwrap_or(0);
            let held = merged.map_or(0, LowRank::rank);
            let kept = rank.min(held);
            if let Some(merged) = merged.filter(|_| kept < held) {
                fixed.insert(candidate.id.clone(), merged.components(kept..held));
            }
            if rank > 0 {
                let seed = init.named(candidate.id.as_str());
                let fresh = LowRank::fresh(rank - kept, candidate.inputs, candidate.outputs, seed);
                let trained = merged.map_or(fresh.clone(), |merged| merged.components(0..kept).stacked(&fresh));
                factors.insert(candidate.id.clone(), trained);
            }
        }
        let training = &self.settings.training;
        TrainWork {
            adapter: Adapter { scaling: state.adapter.scaling, factors, head: state.adapter.head.clone() },
            fixed,
            base_format: plan.base_format,
            recompute: plan.recompute,
            batch_size: plan.batch_size,
            steps: plan.local_steps,
            learning_rate: training.learning_rate(state, plan.local_steps),
            weight_decay: training.weight_decay,
            max_grad_norm: training.max_grad_norm,
            dropout: training.dropout,
            spare_bytes: state.profiles.get(&plan.silo).map_or(0, |profile| spare_bytes(profile, plan)),
            sensitivity: false,
        }
    }

    /// The merged factors of one weight; `None` when nothing is left of them.
    fn merge(
        &self,
        weight: &WeightId,
        state: &RunState,
        owners: &[(u64, &LowRank)],
    ) -> Result<Option<LowRank>, String> {
        let merged = state.adapter.factors.get(weight);
        let whole = |trained: &LowRank| -> Result<LowRank, String> {
            let Some(merged) = merged else { return Ok(trained.clone()) };
            if shape(trained) != shape(merged) {
                return Err(format!(
                    "{weight}: factors of a {:?} weight for one of {:?}",
                    shape(trained),
                    shape(merged)
                ));
            }
            Ok(trained.stacked(&merged.components(trained.rank().min(merged.rank())..merged.rank())))
        };
        let wholes = owners.iter().map(|(_, trained)| whole(trained)).collect::<Result<Vec<_>, _>>()?;
        if let Some(other) = wholes.iter().find(|factors| shape(factors) != shape(&wholes[0])) {
            return Err(format!("{weight}: silos hand back {:?} and {:?}", shape(&wholes[0]), shape(other)));
        }
        let total: u64 = owners.iter().map(|(examples, _)| examples).sum();
        let share = |examples: u64| examples as f64 / total.max(1) as f64;
        let parts: Vec<WeightedFactors<'_>> = wholes
            .iter()
            .zip(owners)
            .map(|(factors, (examples, _))| WeightedFactors { share: share(*examples), factors })
            .collect();
        let merged = self.settings.aggregator.merge(&parts, state.plan.server_rank);
        Ok((merged.rank() > 0).then_some(merged))
    }
}

/// Outputs and inputs of the weight.
fn shape(factors: &LowRank) -> (usize, usize) {
    (factors.b().rows(), factors.a().cols())
}

impl Method for FedPipe {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn tasks(&self, state: &RunState, cohort: &[SiloId]) -> Vec<Task> {
        let round = state.round + 1;
        let task = |silo: &SiloId| {
            let work = Work::Train(self.work(state, state.plan.silos.get(silo)?));
            let seed = state.seed.derive(Purpose::Batches, round, Some(silo));
            Some(Task { round, silo: silo.clone(), seed, work })
        };
        cohort.iter().filter_map(task).collect()
    }

    fn fold(&self, state: &RunState, updates: &[Update]) -> Result<Adapter, FoldError> {
        let error = |reason: String| FoldError { round: state.round + 1, reason };
        let mut trained: BTreeMap<&WeightId, Vec<(u64, &LowRank)>> = BTreeMap::new();
        let mut heads = Vec::new();
        for update in updates {
            let Outcome::Trained(adapter) = &update.outcome else {
                return Err(error(format!("silo {} hands back scores, not an adapter", update.silo)));
            };
            heads.push((update.examples, &adapter.head));
            for (weight, factors) in &adapter.factors {
                trained.entry(weight).or_default().push((update.examples, factors));
            }
        }
        let mut next = state.adapter.clone();
        for (weight, owners) in trained {
            match self.merge(weight, state, &owners).map_err(error)? {
                Some(merged) => next.factors.insert(weight.clone(), merged),
                None => next.factors.remove(weight),
            };
        }
        next.head = mean_head(&state.adapter.head, &heads).map_err(error)?;
        Ok(next)
    }
}

/// The mean of `heads` by examples; `current` when there is none.
fn mean_head(current: &Head, heads: &[(u64, &Head)]) -> Result<Head, String> {
    let total: u64 = heads.iter().map(|(examples, _)| examples).sum();
    if total == 0 {
        return Ok(current.clone());
    }
    let mean = |(name, now): (&String, &Matrix)| {
        let mut sum = vec![0.0f64; now.data().len()];
        for (examples, head) in heads {
            let part = head.get(name).filter(|part| (part.rows(), part.cols()) == (now.rows(), now.cols()));
            let part = part.ok_or_else(|| format!("head tensor `{name}` is missing or has another shape"))?;
            let share = *examples as f64 / total as f64;
            sum.iter_mut().zip(part.data()).for_each(|(sum, &value)| *sum += share * f64::from(value));
        }
        Ok((name.clone(), Matrix::from_fn(now.rows(), now.cols(), |i, j| sum[i * now.cols() + j] as f32)))
    };
    current.iter().map(mean).collect()
}

#[cfg(test)]
mod tests;
