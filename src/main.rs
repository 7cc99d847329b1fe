//! The `lifeboat` command.

fn main() -> std::process::ExitCode {
    lifeboat::cli::main()
}
