//! Calls every feature of the extension once.

use super::{Mirror, Session};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Calls all verbs and readers, and removes members in every way. Afterwards alice is the only member of the
/// lobby. Everything else happens in a room of its own: the channel of a room that bob has just left would
/// still be waiting for its next name.
pub fn use_everything(service: &mut Session, alice: &mut Session, bob: &mut Session) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let room = format!("room{}", COUNT.fetch_add(1, Relaxed));
    let room = room.as_str();
    alice.run("select presence.upsert('lobby')");
    alice
        .run(&format!("select presence.upsert('{room}', '{{\"n\": 0}}', metadata => '{{\"name\": \"A\"}}')"));
    bob.run(&format!("select presence.upsert('{room}', session => true)"));
    // All channel names may be about to change if rights were revoked a moment ago.
    for _ in 0..5 {
        bob.run(&format!("select presence.listen('{room}')"));
        if !bob.hear().iter().any(|event| event.kind() == "relisten") {
            break;
        }
    }
    let mut mirror = Mirror::of(bob);
    assert_eq!(alice.number(&format!("select state['n'] from presence.update('{room}', '{{\"n\": 1}}')")), 1);
    assert!(alice.is(&format!("select presence.heartbeat('{room}')")));
    assert!(alice.rows(&format!("select * from presence.heartbeat_many('{{{room}}}')")).is_empty());
    alice.run(&format!("select presence.upsert('{room}', connection_id => 'phone', ttl => '1 s')"));
    let heard =
        bob.hear_until("an expiry", |event| event.kind() == "leave" && event.text("reason") == "expired");
    heard.iter().for_each(|event| mirror.apply(bob, event));
    mirror.follow(bob);
    mirror.assert_true(bob);

    assert_eq!(bob.rows(&format!("select members, users from presence.occupancy('{room}')"))[0], ["2", "2"]);
    assert_eq!(bob.number(&format!("select count(*) from presence.users('{room}')")), 2);
    assert_eq!(bob.number(&format!("select count(*) from presence.get('{room}', 'alice')")), 1);
    assert_eq!(bob.value(&format!("select presence.state('{room}') -> 'alice' -> 0 ->> 'n'")), "1");
    assert!(bob.is(&format!("select '{room}' in (select room from presence.rooms())")));
    assert!(bob.is(&format!("select count(*) > 2 from presence.history('{room}')")));
    assert!(bob.is("select count(*) > 2 from presence.changes(0)"));
    assert!(bob.is("select online from presence.last_seen where user_id = 'alice'"));

    service.run("select presence.set_room('side', '{\"topic\": \"t\"}', max_members => 1)");
    service.run(
        r#"select presence.upsert_many('[{"room": "side", "member_id": "m", "user_id": "u", "ttl": "1 h"}]')"#,
    );
    assert_eq!(alice.fails("select presence.upsert('side')").code, "54000");
    assert_eq!(service.number(r#"select presence.delete_many('[{"room": "side", "member_id": "m"}]')"#), 1);
    service.run("select presence.delete_room('side')");
    service
        .run("select presence.rotate_channels(); select presence.sweep(); select presence.forget('nobody')");
    assert_eq!(bob.number(&format!("select presence.delete('{room}')")), 1);
    assert_eq!(alice.number(&format!("select presence.delete('{room}')")), 1);
    bob.run("select presence.unlisten()");
    assert_eq!(service.number("select members from presence.health"), 1);
    service.flush();
    assert_eq!(service.value("select last_error from presence.health"), "");
}
