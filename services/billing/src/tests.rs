//! The API as clients see it: who may do what, the shapes of problems, revisions, the description, the console.

mod access;
mod adjustments;
mod console;
mod dead_letters;
mod documents;
mod keys;
mod memory;
mod openapi;
