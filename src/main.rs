//! The program `zrc-relay`.

fn main() {}
