//! The real shell over the loopback interface of a network namespace of its own: what only sockets and threads can show.
//! Root is needed to make the namespace.

mod ends;
mod log;
mod neighbour;
mod places;
mod settings;
mod space;
