//! How much memory this process took.

/// Most resident memory so far, in MiB; `None` where the system does not tell.
#[cfg(unix)]
pub fn peak_rss_mib() -> Option<f64> {
    use nix::sys::resource::{UsageWho, getrusage};
    // Linux and the BSDs count KiB, Apple's systems count bytes.
    let unit = if cfg!(target_vendor = "apple") { 1.0 } else { 1024.0 };
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    Some(usage.max_rss() as f64 * unit / f64::from(1 << 20))
}

/// Most resident memory so far, in MiB; `None` where the system does not tell.
#[cfg(not(unix))]
pub fn peak_rss_mib() -> Option<f64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    /// `/proc` counts in KiB and is another way to the same number. Other tests allocate meanwhile, and on many
    /// cores the system counts with errors of tens of MiB, so only the magnitude is held.
    #[test]
    fn the_peak_is_what_proc_says() {
        let held = vec![1u8; 128 << 20];
        assert_eq!(std::hint::black_box(&held)[1], 1);
        let peak = super::peak_rss_mib().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let ratio = peak / (kib / 1024.0);
        assert!(peak > 64.0 && (0.5..2.0).contains(&ratio), "{peak} MiB here, {kib} KiB in /proc");
    }
}
