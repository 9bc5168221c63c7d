//! Whole hubs, from outside: the program itself, its ports, its files and its exit codes. One module per capability.

mod access;
mod admission;
mod amqp_devices;
mod amqp_peer;
mod amqp_services;
mod backlog;
mod certificates;
mod cli;
mod commands;
mod devices;
mod events;
mod hostile;
mod http;
mod hub;
mod kill9;
mod mqtt;
mod mqtt_peer;
mod network;
mod openapi;
mod peers;
mod registry;
mod sessions;
mod streams;
mod throttles;
mod upkeep;
mod websocket;
