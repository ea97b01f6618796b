//! The program, run as a user does.

mod demo;
mod dev;
mod harness;
