#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fedpipe_fuzz::chat(bytes));
