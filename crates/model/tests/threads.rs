//! The cap on threads, in processes of their own: a process has one pool.

use fedpipe_model::{device_name, limit_threads};
use std::process::Command;

/// Set in the process that caps its threads.
const CHILD: &str = "FEDPIPE_TEST_CAPPED";

#[test]
fn a_cap_on_threads_counts_for_the_device_and_not_what_the_environment_says() {
    if std::env::var_os(CHILD).is_none() {
        let test = std::env::current_exe().unwrap();
        let child = Command::new(test).env(CHILD, "1").env("RAYON_NUM_THREADS", "3").output().unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    limit_threads(1).unwrap();
    assert_eq!(rayon::current_num_threads(), 1);
    assert!(device_name().contains(", 1 threads, "), "{}", device_name());
    // Once more is no harm; another number comes too late.
    limit_threads(1).unwrap();
    if std::thread::available_parallelism().unwrap().get() > 1 {
        let error = limit_threads(2).unwrap_err().to_string();
        assert_eq!(error, "2 threads are asked for, and this process computes with 1 already");
    }
}
