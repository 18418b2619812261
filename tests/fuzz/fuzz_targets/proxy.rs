#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ringmx_fuzz::proxy::run(input));
