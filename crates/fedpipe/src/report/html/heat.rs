//! Weights by kind (down) and layer (across), each as dark as its share.

use crate::report::plan::WeightGrid;
use fedpipe_core::WeightId;
use maud::{Markup, Render, html};

/// Gives a weight's share of the darkest, 0 to 1, and its text.
pub type Cell<'a> = &'a dyn Fn(&WeightId) -> Option<(f64, String)>;

/// A table of weights.
pub struct HeatMap<'a> {
    /// The weights to lay out.
    pub weights: Vec<&'a WeightId>,
    /// What a weight shows; a dot when it has nothing to show.
    pub cell: Cell<'a>,
}

impl Render for HeatMap<'_> {
    fn render(&self) -> Markup {
        let grid = WeightGrid::of(self.weights.iter().copied());
        html! {
            @if grid.kinds.is_empty() {
                p class="muted" { "no weights" }
            } @else {
                table class="heat" {
                    thead { tr { th { "layer" } @for layer in &grid.layers { th { (layer) } } } }
                    tbody {
                        @for kind in &grid.kinds {
                            tr {
                                th { (grid.name(kind)) }
                                @for layer in grid.columns(kind) { (self.cell(&grid.weight(kind, layer))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl HeatMap<'_> {
    fn cell(&self, weight: &WeightId) -> Markup {
        match (self.cell)(weight) {
            None => html! { td class="none" { "·" } },
            Some((share, text)) => {
                let percent = 12.0 + 88.0 * share.clamp(0.0, 1.0);
                let class = if percent > 60.0 { "strong" } else { "" };
                html! { td class=(class) style=(format!("--share:{percent:.0}%")) title=(weight) { (text) } }
            }
        }
    }
}
