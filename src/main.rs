//! The rbuild command.
fn main() {
    rbuild::exec::init_hook();
}
