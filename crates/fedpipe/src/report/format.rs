//! Numbers as people read them.

/// `1.5 MB`, in powers of ten.
pub fn bytes(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(size, _)| bytes as f64 >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / size),
        None => format!("{bytes} B"),
    }
}

/// `1 h 02 min`, `3 min 05 s`, `12.3 s`.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if whole >= 3600 {
        format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
    } else if whole >= 60 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{seconds:.1} s")
    }
}

/// `1,234,567`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `93 % of 4,100 lookups`.
pub fn hits(hits: u64, lookups: u64) -> String {
    let percent = 100.0 * hits as f64 / lookups.max(1) as f64;
    format!("{percent:.0} % of {} lookups", count(lookups))
}

/// MiB of so many bytes.
pub fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1_500_000), bytes(2_000_000_000_000)],
            ["0 B", "999 B", "1.5 MB", "2.0 TB"]
        );
        assert_eq!(
            [seconds(0.04), seconds(59.4), seconds(185.0), seconds(3725.0)],
            ["0.0 s", "59.4 s", "3 min 05 s", "1 h 02 min"]
        );
        assert_eq!(hits(3813, 4100), "93 % of 4,100 lookups");
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
    }
}
