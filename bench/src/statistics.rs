//! Numbers out of rounds.

/// The middle value, or the mean of the two middle ones; NaN without any.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The geometric mean; NaN without any value.
pub(crate) fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// The least and the greatest.
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (least, greatest)
}

/// What is left above a floor. Nothing can be told apart from the floor closer than a fiftieth of it, so no less than
/// that is left.
pub(crate) fn above(value: f64, floor: f64) -> f64 {
    (value - floor).max(floor / 50.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[5.0, 1.0, 3.0, 9.0]), 4.0);
        assert_eq!(range(&[5.0, 1.0, 3.0]), (1.0, 5.0));
    }

    #[test]
    fn a_geometric_mean_is_no_arithmetic_one() {
        assert!((geometric_mean(&[0.5, 2.0]) - 1.0).abs() < 1e-12);
        assert!(geometric_mean(&[]).is_nan());
    }

    #[test]
    fn what_is_below_the_floor_is_not_taken_for_nothing() {
        assert_eq!(above(30.0, 10.0), 20.0);
        assert_eq!(above(10.0, 10.0), 0.2);
        assert_eq!(above(7.0, 0.0), 7.0);
    }
}
