//! The `ringmx` program.

fn main() {
    let mut args = Vec::new();
    for arg in std::env::args_os().skip(1) {
        match arg.into_string() {
            Ok(arg) => args.push(arg),
            Err(arg) => {
                let code = ringmx::cli::fail(&format!("argument {arg:?} is not UTF-8"));
                std::process::exit(code);
            }
        }
    }
    std::process::exit(ringmx::cli::run(&args));
}
