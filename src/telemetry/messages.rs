//! Which kind of event has which `MESSAGE_ID`: for programs that wait for one, and for the catalog that explains each
//! (`journalctl -x`; `packaging/attachd.catalog`). An id is never given to another kind.

const IDS: [(&str, &str); 22] = [
    ("intent", "3ceaaf30814248ea91d93080f9b439fc"),
    ("waiting", "9dfb369bab134faea27655daa05f1119"),
    ("heard", "6301bbfca0c5454e8ff9bb510944fe0c"),
    ("proven", "6fced11d2bd841e6847a8387cdde8d51"),
    ("matched", "3a124c647e024f05b7c1dce27f7695f5"),
    ("recorded", "66080f174c9648e29cbd0ba3a1a6bcde"),
    ("exporting", "b120a366f0bb49cf82f2dc05873f9bd0"),
    ("published", "78b7d0ac84774ce08e4cda11b43c589b"),
    ("ready", "2330fcf1562a44b888668d77e827062c"),
    ("refused", "c1acc9906424450aa36bf9b3ddcb369d"),
    ("revoked", "9ad9b9a25e78454db065a1c284cc4549"),
    ("lost", "993565976fba4662b6a730b7b12e9eed"),
    ("late", "8df08078a22e418085c2c2af3977a654"),
    ("expired", "f3194a3b381e43e7952c466e473a1797"),
    ("detaching", "c498b6e73648445e9afa3a387f006745"),
    ("attaching", "ab57f985433243daa75a2e199b58ba8d"),
    ("withdrawn", "c1b87f1a7323491b99f9cbef0f69a4d0"),
    ("sealed", "ba2185b8923645298ab1ed365c01b591"),
    ("unsealed", "6c396da50bbe45cd8d44f45ae03ef581"),
    ("resync", "f61b5283d99b47c3b26cb3ba21aae34a"),
    ("vanished", "d1f7a64be5c04a0b9a1f0a7c5be3f2d8"),
    ("entries-lost", "2eb737282fea475eb5365e1458294a90"),
];

/// The id of a kind of event.
pub(super) fn id(event: &str) -> Option<&'static str> {
    IDS.iter().find(|(name, _)| *name == event).map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::volume::State;

    #[test]
    fn every_state_and_every_step_that_is_noted_has_an_id() {
        for state in State::ALL {
            assert!(id(state.as_str()).is_some(), "{state}");
        }
        let sources = [
            include_str!("../engine/resync.rs"),
            include_str!("../engine/exports.rs"),
            include_str!("../engine/request.rs"),
            include_str!("../engine/settle.rs"),
            include_str!("../engine/step.rs"),
            include_str!("../engine/story.rs"),
            include_str!("../engine/withdraw.rs"),
        ];
        let mut steps = BTreeSet::new();
        // note(id, "step", …), note_at(id, at, "step", …), EVENT = "step"
        for source in sources {
            let calls = source.split("note(id, \"").skip(1).chain(source.split("EVENT = \"").skip(1));
            steps.extend(calls.filter_map(|rest| rest.split('"').next()));
            let timed =
                source.split(".note_at(id, ").skip(1).filter_map(|rest| rest.split_once(')')).map(|(call, _)| call);
            steps.extend(timed.filter_map(|call| call.split('"').nth(1)));
        }
        assert!(steps.len() > 5 && steps.contains("published") && steps.contains("revoked"), "{steps:?}");
        for step in steps {
            assert!(id(step).is_some(), "{step}");
        }
    }

    #[test]
    fn the_catalog_explains_every_id_once_and_nothing_else() {
        let catalog = include_str!("../../packaging/attachd.catalog");
        let explained: Vec<&str> = catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        let known: Vec<&str> = IDS.iter().map(|(_, id)| *id).collect();
        assert_eq!(explained, known);
        assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), IDS.len(), "no id is used twice");
        assert_eq!(catalog.matches("\nSubject: ").count(), IDS.len());
        assert!(known.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
    }
}
