//! Whole hubs, from outside: the program itself, its ports, its files and its exit codes. One module per capability.

mod backlog;
mod cli;
mod commands;
mod devices;
mod events;
mod hostile;
mod http;
mod hub;
mod kill9;
mod network;
mod peers;
mod sessions;
mod streams;
