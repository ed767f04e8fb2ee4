//! The value of `security.capability`, in the one form that layers use.
//!
//! In: a value as a tar or the kernel gives it. Out: its v2 form, or nothing when it is no such value.
//! What always holds: the form depends on the capabilities alone, not on the user namespace of who reads it: v3 adds the
//! id of the namespace's root to v2, v1 has 32 instead of 64 bits.

/// Bytes of a v2 value.
const V2: usize = 20;

/// The v2 form of a value of `security.capability`.
pub fn to_v2(value: &[u8]) -> Option<Vec<u8>> {
    // A magic number whose top byte is the version; permitted and inheritable bits, 32 each, once (v1) or twice.
    let (&[flags, 0, 0, version], bits) = value.split_first_chunk::<4>()? else {
        return None;
    };
    let length = match version {
        1 => 8,
        2 => 16,
        3 => 20,
        _ => return None,
    };
    if bits.len() != length || flags > 1 {
        return None;
    }
    let mut v2 = vec![flags, 0, 0, 2];
    v2.extend_from_slice(&bits[..length.min(16)]);
    v2.resize(V2, 0);
    Some(v2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_versions_become_v2() {
        let (permitted, inheritable, high) = ([0, 0x20, 0, 0], [0; 4], [1, 0, 0, 0]);
        let v2 = |high: [u8; 4]| [[1, 0, 0, 2], permitted, inheritable, high, [0; 4]].concat();
        assert_eq!(to_v2(&[[1, 0, 0, 1], permitted, inheritable].concat()), Some(v2([0; 4])));
        assert_eq!(to_v2(&v2(high)), Some(v2(high)));
        let root = [0xe8, 3, 0, 0];
        assert_eq!(to_v2(&[[1, 0, 0, 3], permitted, inheritable, high, [0; 4], root].concat()), Some(v2(high)));
    }

    #[test]
    fn nothing_else_does() {
        for bad in [&[] as &[u8], &[1, 0, 0], &[1, 0, 0, 2], &[1, 0, 0, 2, 0], &[0; 20], &[1, 0, 0, 4, 0, 0, 0, 0]] {
            assert_eq!(to_v2(bad), None, "{bad:?}");
        }
        assert_eq!(to_v2(&[[2, 0, 0, 2].as_slice(), &[0; 16]].concat()), None, "an unknown flag");
        assert_eq!(to_v2(&[[1, 0, 0, 2].as_slice(), &[0; 20]].concat()), None, "too long");
    }
}
