//! The client that stays: it copies a whole export slowly, again and again.

use std::time::Duration;

use lab::NbdClient;

use crate::judge::compare_piece;
use crate::ledger::{Known, Ledger, held};

/// The number of pieces of one copy; a copy starts again at the beginning of the disk when it reaches the end.
const PIECES: u64 = 60;

/// Copies until the soak is over.
pub(crate) fn follow(ledger: &Ledger, mut random: fastrand::Rng) {
    while ledger.goes_on() {
        std::thread::sleep(Duration::from_millis(random.u64(20..200)));
        let Some(known) = ledger.any(&mut random) else { continue };
        let Ok(_connected) = known.gate.try_read() else { continue };
        let server = ledger.server.now();
        let Ok(mut client) = NbdClient::connect("127.0.0.1:10809", &known.volume.export()) else { continue };
        begin(ledger, &known);
        let copied = copy(ledger, &known, &mut client, &mut random);
        held(&ledger.copying).0 = None;
        match copied {
            Ok(()) => ledger.count("copies"),
            // Only a stop or a kill of the server may disconnect a client.
            Err(_) if ledger.server.now() != server || server % 2 == 1 => ledger.count("copies cut with the server"),
            Err(why) => ledger.fail(format_args!("{}: a client was cut off: {why}", known.volume.id)),
        }
    }
}

fn begin(ledger: &Ledger, known: &Known) {
    let mut copying = held(&ledger.copying);
    *copying = (Some(known.volume.id.clone()), copying.1 + 1);
}

fn copy(ledger: &Ledger, known: &Known, client: &mut NbdClient, random: &mut fastrand::Rng) -> Result<(), String> {
    for piece in 0..PIECES {
        let at = (piece << 16) % known.size;
        if !compare_piece(client, known, at)? {
            ledger.fail(format_args!("{}: WRONG BYTES for a client that stays, at {at}", known.volume.id));
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        if !ledger.goes_on() {
            break;
        }
    }
    Ok(())
}
