//! In-server tests (`#[pg_test]`): each runs in a transaction of its own that is rolled back.
