fn main() {
    println!("forebay {}", env!("CARGO_PKG_VERSION"));
}
