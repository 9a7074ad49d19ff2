#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vdsmstore_hostile::repair(bytes));
