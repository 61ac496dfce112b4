//! Figures as people read them: rows with a bar and whether it is met, and the statistics that
//! the measurements share.

use std::fmt::Display;

use crate::shell::say;

/// One line of a table.
pub(crate) struct Row {
    what: String,
    measured: String,
    bar: Option<Bar>,
}

/// What a figure is held against.
struct Bar {
    /// The figure in the bar's own unit, which may be another one than what was measured.
    figure: String,
    limit: String,
    met: bool,
}

impl Row {
    /// A figure that nothing is asked of.
    pub(crate) fn new(what: impl Into<String>, measured: impl Display) -> Self {
        Self { what: what.into(), measured: measured.to_string(), bar: None }
    }

    /// With a limit that the figure must not exceed.
    #[must_use]
    pub(crate) fn at_most(self, figure: f64, limit: f64, unit: &str) -> Self {
        self.with_bar(figure, "≤", limit, unit, figure <= limit)
    }

    /// With a limit that the figure must reach.
    #[must_use]
    pub(crate) fn at_least(self, figure: f64, limit: f64, unit: &str) -> Self {
        self.with_bar(figure, "≥", limit, unit, figure >= limit)
    }

    fn with_bar(mut self, figure: f64, sign: &str, limit: f64, unit: &str, met: bool) -> Self {
        let (figure, limit) = (format!("{figure:.2}"), format!("{sign} {limit} {unit}"));
        self.bar = Some(Bar { figure, limit, met });
        self
    }
}

/// Prints a table.
pub(crate) fn print(title: &str, rows: &[Row]) {
    say(format_args!("{title:<40} {:>12} {:>9}  {:<24} met?", "measured", "is", "bar"));
    for Row { what, measured, bar } in rows {
        match bar {
            None => say(format_args!("  {what:<38} {measured:>12}")),
            Some(Bar { figure, limit, met }) => say(format_args!(
                "  {what:<38} {measured:>12} {figure:>9}  {limit:<24} {}",
                if *met { "yes" } else { "NO" }
            )),
        }
    }
}

/// The value below which this share of all values lies; 0 without values.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into some thousand values"
    )]
    let index = (share * sorted.len() as f64) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// The middle value; 0 without values.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let cases = [(0.0, 1.0), (0.5, 51.0), (0.99, 100.0), (1.0, 100.0)];
        for (share, expected) in cases {
            assert!((quantile(&values, share) - expected).abs() < f64::EPSILON, "{share}");
        }
        assert!((median(&[]) - 0.0).abs() < f64::EPSILON);
    }
}
