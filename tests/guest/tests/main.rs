//! What is tested in a guest.

fn main() {
    println!("hello");
}
