//! Who may see and receive what, and how the current user is determined.

mod attacks;
mod authorizer;
mod channels;
mod identity;
mod listening;
mod live;
mod matrix;
mod may;
mod pages;
mod people;
mod plans;
mod restart_channels;
