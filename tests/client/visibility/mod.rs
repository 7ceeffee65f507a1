//! Who may see and hear what, and who is asking.

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
