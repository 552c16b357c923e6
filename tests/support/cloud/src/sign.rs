//! What CloudStack signs and how, written from its `ApiServer.verifyRequest`.

use jiff::Timestamp;
use jiff::fmt::strtime;
use openssl::base64::encode_block;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;

/// `java.net.URLEncoder.encode(text, "UTF-8")` with `+` replaced by `%20`: of all characters only letters, digits and `.-*_`
/// stay as they are.
fn java_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'*' | b'_' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// What is signed of these parameters, in whatever order they came: all but the signature, sorted by their names as they
/// were sent (capitals first), the values encoded and the names not, all of it in lower case. Of a parameter that is there
/// twice the first counts.
pub(crate) fn string_to_sign(parameters: &[(String, String)]) -> String {
    let mut signed: Vec<&(String, String)> = Vec::new();
    for parameter in parameters {
        let known = signed.iter().any(|(name, _)| *name == parameter.0);
        if !known && !parameter.0.eq_ignore_ascii_case("signature") {
            signed.push(parameter);
        }
    }
    signed.sort_by(|one, other| one.0.cmp(&other.0));
    let pieces: Vec<String> = signed.iter().map(|(name, value)| format!("{name}={}", java_encode(value))).collect();
    pieces.join("&").to_lowercase()
}

/// The signature of it, in base64.
pub(crate) fn signature(secret: &str, text: &str) -> String {
    let key = PKey::hmac(secret.as_bytes()).expect("any text is a key");
    let mut signer = Signer::new(MessageDigest::sha1(), &key).expect("OpenSSL has SHA-1");
    encode_block(&signer.sign_oneshot_to_vec(text.as_bytes()).expect("a text can be signed"))
}

/// A point in time as `expires` may say it: with an offset (`+0000` or `+00:00`), or as an instant (`Z`).
pub(crate) fn expires(text: &str) -> Option<Timestamp> {
    let with = |format: &str| strtime::parse(format, text).and_then(|parsed| parsed.to_timestamp()).ok();
    with("%Y-%m-%dT%H:%M:%S%z").or_else(|| with("%Y-%m-%dT%H:%M:%S%:z")).or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(parameters: &[(&str, &str)]) -> Vec<(String, String)> {
        parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn values_are_encoded_as_java_does_it_and_names_are_not() {
        let text = string_to_sign(&pairs(&[("name", "a b~c*d/é+"), ("d[0].key", "1")]));
        assert_eq!(text, "d[0].key=1&name=a%20b%7ec*d%2f%c3%a9%2b");
    }

    #[test]
    fn names_are_sorted_as_they_were_sent_and_the_first_of_two_counts() {
        let text = string_to_sign(&pairs(&[("b", "1"), ("apiKey", "K"), ("Z", "2"), ("b", "3"), ("Signature", "x")]));
        assert_eq!(text, "z=2&apikey=k&b=1");
    }

    /// RFC 2202, test case 2.
    #[test]
    fn the_signature_is_hmac_sha1_in_base64() {
        assert_eq!(signature("Jefe", "what do ya want for nothing?"), "7/zfauXrL6LSdBbV8YTfnCWafHk=");
    }

    #[test]
    fn a_moment_is_read_with_any_offset() {
        let noon = "2026-11-28T12:00:00Z".parse().ok();
        for text in ["2026-11-28T12:00:00+0000", "2026-11-28T12:00:00Z", "2026-11-28T14:00:00+02:00"] {
            assert_eq!(expires(text), noon, "{text}");
        }
        assert_eq!(expires("tomorrow"), None);
    }
}
