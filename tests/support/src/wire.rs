//! libudev's message format (multicast group 2 of NETLINK_KOBJECT_UEVENT), both directions.

use std::collections::BTreeMap;

/// The properties of an event.
pub type Properties = BTreeMap<String, String>;

/// udev's multicast group.
pub(crate) const UDEV_GROUP: u32 = 2;

const PREFIX: &[u8; 8] = b"libudev\0";
const MAGIC: u32 = 0xfeed_cafe;
const HEADER: u32 = 40;

/// Encodes properties as udevd would send them. The hashes are for the listeners' in-kernel filters: without the
/// right hashes a filtering listener never receives the message.
pub fn encode(properties: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::with_capacity(512);
    for (key, value) in properties {
        for part in [key.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            body.extend_from_slice(part);
        }
    }
    let get = |wanted: &str| properties.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
    let bloom =
        get("TAGS").unwrap_or("").split(':').filter(|tag| !tag.is_empty()).fold(0, |b, tag| b | bloom_bits(tag));
    let length = u32::try_from(body.len()).expect("an event is small");

    let mut message = Vec::with_capacity(HEADER as usize + body.len());
    message.extend_from_slice(PREFIX);
    message.extend_from_slice(&MAGIC.to_be_bytes());
    for native in [HEADER, HEADER, length] {
        message.extend_from_slice(&native.to_ne_bytes());
    }
    let hash_of = |value: Option<&str>| value.map_or(0, |v| murmur2(v.as_bytes()));
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a 64-bit set")]
    let halves = [(bloom >> 32) as u32, bloom as u32];
    for big_endian in [hash_of(get("SUBSYSTEM")), hash_of(get("DEVTYPE")), halves[0], halves[1]] {
        message.extend_from_slice(&big_endian.to_be_bytes());
    }
    message.extend_from_slice(&body);
    message
}

/// Decodes the properties of a message; `None` if it is not one of udev's.
pub fn decode(message: &[u8]) -> Option<Properties> {
    let word = |at: usize| message.get(at..at + 4).and_then(|b| b.try_into().ok());
    if !message.starts_with(PREFIX) || u32::from_be_bytes(word(8)?) != MAGIC {
        return None;
    }
    let (offset, length) = (u32::from_ne_bytes(word(16)?) as usize, u32::from_ne_bytes(word(20)?) as usize);
    let body = message.get(offset..offset.checked_add(length)?)?;
    let pairs = body.split(|byte| *byte == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    Some(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn bloom_bits(tag: &str) -> u64 {
    let hash = murmur2(tag.as_bytes());
    [0, 6, 12, 18].into_iter().fold(0, |bits, shift| bits | 1 << ((hash >> shift) & 63))
}

/// MurmurHash2 with seed 0, as systemd has it.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = u32::try_from(data.len()).expect("a property is small");
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().expect("four bytes")).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}
