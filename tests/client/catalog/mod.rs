//! What others change of the catalog: verbs still do what plain SQL would.

mod as_made;
mod ddl;
mod owners;
mod random_ddl;
mod same_as_sql;
