//! A cancel always ends the statement with an error, whatever code is running at that moment: it never
//! shortens the result. (In the authorizer: `visibility::authorizer`; for the worker: `faults::resilience`.)

use crate::common::Cluster;

/// Triggers and policies that others add are part of the statement, too.
#[test]
fn a_cancel_in_code_of_others_ends_the_statement() {
    let cluster = Cluster::with(&["presence.member_ids=any"]);
    cluster.sql(
        "app",
        "create schema app; grant usage on schema app to public;
         create function app.wait() returns boolean language plpgsql as $$ begin
             if current_setting('app.slow', true) = 'on' then perform pg_sleep(60); end if; return true; end $$;
         create function app.slow() returns trigger language plpgsql as $$ begin
             perform app.wait(); return case when tg_op = 'DELETE' then old else new end; end $$;
         create trigger slow before insert or update or delete on presence.member for each row execute function app.slow();
         create policy slow on presence.member as restrictive for select using (app.wait());
         select presence.upsert('hall', user_id => 'zed', audience => '{any}')",
    );
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('mine', audience => '{}')");
    bob.run("set app.slow = on; set statement_timeout = '100ms'");
    for sql in [
        "select presence.upsert('hall')",
        "select presence.upsert('mine', '{\"x\": 1}')",
        "select presence.update('mine', '{\"x\": 1}')",
        "select presence.delete('mine')",
        "select presence.delete_all()",
        r#"select presence.upsert_many('[{"room": "hall"}]')"#,
        r#"select presence.delete_many('[{"room": "mine"}]')"#,
        "insert into presence.member (room) values ('hall')",
        "delete from presence.member",
        "select * from presence.list('hall')",
        "select * from presence.online",
        "select * from presence.occupancy('hall')",
        "select * from presence.rooms()",
    ] {
        assert_eq!(bob.fails(sql).code, "57014", "{sql}");
    }
    bob.run("set app.slow = off; set statement_timeout = 0");
    assert_eq!(bob.number("select count(*) from presence.get('mine', 'bob')"), 1);
    cluster.assert_sound();
}
