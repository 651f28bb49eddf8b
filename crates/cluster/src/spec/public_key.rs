//! Public SSH keys as lines of `authorized_keys`.
//!
//! Source: sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; the contents of a key: RFC 4253, section 6.6, RFC 5656, section 3.1, RFC 8709, section 4,
//! and OpenSSH's PROTOCOL.u2f.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Type of a key, and the number of fields after the type's name.
const TYPES: [(&str, usize); 7] = [
    ("ssh-ed25519", 1),
    ("ssh-rsa", 2),
    ("ecdsa-sha2-nistp256", 2),
    ("ecdsa-sha2-nistp384", 2),
    ("ecdsa-sha2-nistp521", 2),
    ("sk-ssh-ed25519@openssh.com", 2),
    ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
];
/// OpenSSH's `RequiredRSASize`: shorter keys are rejected at every login.
const MIN_RSA_BITS: usize = 1024;

/// Splits off the first word. Options before a key may have spaces in double quotes, in which a backslash escapes a quote.
fn first_word(text: &str) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, character) in text.char_indices() {
        match character {
            '"' if !escaped => quoted = !quoted,
            ' ' | '\t' if !quoted => return (&text[..at], text[at..].trim_start()),
            _ => {}
        }
        escaped = character == '\\' && !escaped;
    }
    (text, "")
}

/// The length-prefixed fields of an encoded key; `None` if they do not fill it exactly.
fn fields(mut blob: &[u8]) -> Option<Vec<&[u8]>> {
    let mut out = Vec::new();
    while !blob.is_empty() {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        out.push(field);
        blob = rest;
    }
    Some(out)
}

/// Checks a line of `authorized_keys`: optional options, the type, the key in base64, and an optional comment.
///
/// # Errors
/// A message that says what is not valid. It does not repeat the line, which may be a private key.
pub(super) fn check(line: &str) -> Result<(), String> {
    if line.contains("PRIVATE KEY") {
        return Err("this is a private key; use the public key, from the file that ends in .pub".into());
    }
    if line.contains(char::is_control) {
        return Err("a key must be one line".into());
    }
    let kind_of = |word: &str| TYPES.into_iter().find(|(name, _)| *name == word);
    let (first, mut rest) = first_word(line.trim());
    let mut kind = kind_of(first);
    if kind.is_none() {
        let (second, after) = first_word(rest);
        (kind, rest) = (kind_of(second), after);
    }
    let Some((name, count)) = kind else {
        let names = TYPES.map(|(name, _)| name).join(", ");
        return Err(format!("a key begins with its type, one of {names}"));
    };
    let (encoded, _) = first_word(rest);
    let invalid = || format!("the key after {name} is not complete; copy the whole line of the file that ends in .pub");
    let blob = STANDARD.decode(encoded).map_err(|_| invalid())?;
    let fields = fields(&blob).ok_or_else(invalid)?;
    let (kind, values) = fields.split_first().ok_or_else(invalid)?;
    if *kind != name.as_bytes() {
        return Err(format!("the key is of type {}, not {name}", String::from_utf8_lossy(kind).escape_debug()));
    }
    let curve = name.split_once("nistp").map(|(_, rest)| rest.trim_end_matches("@openssh.com"));
    let valid = values.len() == count
        && match (name, curve) {
            ("ssh-rsa", _) => true,
            // A point of a curve is one byte and two coordinates.
            (_, Some(bits)) => {
                let bytes = bits.parse::<usize>().map_or(0, |bits| bits.div_ceil(8));
                values[0] == format!("nistp{bits}").as_bytes() && values[1].len() == 1 + 2 * bytes
            }
            _ => values[0].len() == 32,
        };
    if !valid {
        return Err(invalid());
    }
    if name == "ssh-rsa" {
        let modulus = values[1].iter().skip_while(|byte| **byte == 0).count() * 8;
        if modulus < MIN_RSA_BITS {
            return Err(format!("an RSA key of {modulus} bits is rejected by OpenSSH; use ssh-ed25519"));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A well-formed key of 32 zero bytes.
    pub(crate) const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn encode(kind: &str, fields: &[&[u8]]) -> String {
        let mut blob = Vec::new();
        for field in [kind.as_bytes()].iter().chain(fields) {
            blob.extend(u32::try_from(field.len()).unwrap().to_be_bytes());
            blob.extend(*field);
        }
        format!("{kind} {}", STANDARD.encode(blob))
    }

    #[test]
    fn keys_with_options_and_comments_are_accepted() {
        check(KEY).unwrap();
        check(&format!("{KEY} ada@example.com work")).unwrap();
        check(&format!("from=\"10.0.0.0/8, fd00::/8\",command=\"echo \\\"a b\\\"\" {KEY} ada")).unwrap();
        check(&encode("ssh-rsa", &[&[1, 0, 1], &[vec![0], vec![0xc5; 256]].concat()])).unwrap();
        check(&encode("ecdsa-sha2-nistp521", &[b"nistp521", &[4; 133]])).unwrap();
        check(&encode("sk-ssh-ed25519@openssh.com", &[&[7; 32], b"ssh:"])).unwrap();
        check(&encode("sk-ecdsa-sha2-nistp256@openssh.com", &[b"nistp256", &[4; 65], b"ssh:"])).unwrap();
    }

    #[test]
    fn other_lines_are_rejected_with_the_reason() {
        for (line, reason) in [
            ("not a key".to_owned(), "begins with its type"),
            (String::new(), "begins with its type"),
            ("ssh-ed25519".into(), "not complete"),
            ("ssh-ed25519 AAAA ada".into(), "not complete"),
            (KEY[..KEY.len() - 4].into(), "not complete"),
            (KEY.replace("ssh-ed25519", "ssh-rsa"), "of type ssh-ed25519"),
            ("ssh-dss AAAAB3NzaC1kc3MAAACB".into(), "begins with its type"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----".into(), "private key"),
            (format!("{KEY}\n{KEY}"), "one line"),
            (encode("ssh-rsa", &[&[1, 0, 1], &[0xc5; 64]]), "512 bits"),
            (encode("ecdsa-sha2-nistp256", &[b"nistp384", &[4; 65]]), "not complete"),
        ] {
            assert!(check(&line).unwrap_err().contains(reason), "{line}");
        }
    }
}
