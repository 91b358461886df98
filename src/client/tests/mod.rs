//! The client against a relay that does as it is told. Time is virtual: an hour of patience costs nothing.

mod ends;
mod fake;
mod joining;
mod moving;
mod raw;
mod refreshing;
mod traffic;
