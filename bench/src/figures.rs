//! Numbers out of rounds.

use std::time::Duration;

/// The results of one measure for one allocator, a value for each round.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    values: Vec<f64>,
}

impl Rounds {
    /// Adds a round's value.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The middle value, or the mean of the two middle ones; NaN without any.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    /// The smallest value: on a shared machine the one with the least of others' work in it.
    pub fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest value.
    pub fn greatest(&self) -> f64 {
        self.values.iter().copied().fold(f64::NAN, f64::max)
    }

    /// The same rounds with `floor` taken off each.
    pub fn above(&self, floor: f64) -> Rounds {
        Rounds { values: self.values.iter().map(|value| value - floor).collect() }
    }
}

/// How many iterations of `timed` take about `target`, but at least `least`; also warms up whatever it measures.
///
/// `least` keeps one unlucky first call, interrupted by other work, from being taken for the cost of an iteration.
pub fn iterations_for(target: Duration, least: u64, timed: impl Fn(u64) -> Duration) -> u64 {
    let mut count = least.max(1);
    loop {
        let elapsed = timed(count);
        if elapsed * 8 >= target || count >= 1 << 40 {
            let ratio = target.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
            return ((count as f64 * ratio) as u64).max(least);
        }
        count *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let mut rounds = Rounds::default();
        assert!(rounds.median().is_nan());
        for value in [5.0, 1.0, 3.0] {
            rounds.push(value);
        }
        assert_eq!(rounds.median(), 3.0);
        rounds.push(9.0);
        assert_eq!(rounds.median(), 4.0);
        assert_eq!((rounds.least(), rounds.greatest()), (1.0, 9.0));
        assert_eq!(rounds.above(1.0).median(), 3.0);
    }

    #[test]
    fn iterations_fit_the_target() {
        let timed = |count| Duration::from_micros(10 * count);
        assert_eq!(iterations_for(Duration::from_millis(100), 1, timed), 10_000);
        assert_eq!(iterations_for(Duration::from_millis(100), 50_000, timed), 50_000);
    }
}
