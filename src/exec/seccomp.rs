//! The system calls that a RUN cannot make: Docker's usual ones.
//!
//! In: nothing; a table. Out: the program of a seccomp filter, as bytes. Pure. What always holds: what the table denies
//! fails with EPERM; calls that are newer than the table, and `clone3`, whose flags no filter can see, fail with ENOSYS,
//! so that programs fall back to what they did before; a 32-bit program of the same family meets the same filter, and a
//! program of any other kind can make no call at all.
//!
//! Docker lists what is allowed. Here stands what that leaves out for a process with Docker's capabilities, on a kernel
//! that is new enough for rbuild at all. It costs each RUN some 0.3 ms (docs/isolation.md has the figures).

use std::sync::OnceLock;

/// How programs of one kind call the kernel.
struct Abi {
    /// `AUDIT_ARCH_*` of the kernel's headers.
    audit: u32,
    /// Which column of [`DENIED`] has its numbers.
    column: usize,
}

/// Those of this machine's architecture: its own first. Empty where the table has no numbers.
const ABIS: &[Abi] = if cfg!(target_arch = "x86_64") {
    &[Abi { audit: 0xc000_003e, column: X86_64 }, Abi { audit: 0x4000_0003, column: I386 }]
} else if cfg!(target_arch = "aarch64") {
    &[Abi { audit: 0xc000_00b7, column: GENERIC }, Abi { audit: 0x4000_0028, column: ARM }]
} else if cfg!(target_arch = "riscv64") {
    &[Abi { audit: 0xc000_00f3, column: GENERIC }]
} else if cfg!(target_arch = "loongarch64") {
    &[Abi { audit: 0xc000_0102, column: GENERIC }]
} else {
    &[]
};

const X86_64: usize = 0;
const I386: usize = 1;
/// The numbers that all newer architectures share.
const GENERIC: usize = 2;
const ARM: usize = 3;

/// A kind of program does not have this call.
const NO: u32 = u32::MAX;

/// What is denied: the name, and the numbers on x86-64, i386, newer architectures, arm.
const DENIED: &[(&str, [u32; 4])] = &[
    // Modules and other kernels.
    ("init_module", [175, 128, 105, 128]),
    ("finit_module", [313, 350, 273, 379]),
    ("delete_module", [176, 129, 106, 129]),
    ("create_module", [174, 127, NO, NO]),
    ("query_module", [178, 167, NO, NO]),
    ("get_kernel_syms", [177, 130, NO, NO]),
    ("kexec_load", [246, 283, 104, 347]),
    ("kexec_file_load", [320, NO, 294, 401]),
    ("reboot", [169, 88, 142, 88]),
    ("bpf", [321, 357, 280, 386]),
    // Mounts and namespaces.
    ("mount", [165, 21, 40, 21]),
    ("umount", [NO, 22, NO, NO]),
    ("umount2", [166, 52, 39, 52]),
    ("pivot_root", [155, 217, 41, 218]),
    ("open_tree", [428; 4]),
    ("move_mount", [429; 4]),
    ("fsopen", [430; 4]),
    ("fsconfig", [431; 4]),
    ("fsmount", [432; 4]),
    ("fspick", [433; 4]),
    ("mount_setattr", [442; 4]),
    ("open_tree_attr", [467; 4]),
    ("unshare", [272, 310, 97, 337]),
    ("setns", [308, 346, 268, 375]),
    ("sethostname", [170, 74, 161, 74]),
    ("setdomainname", [171, 121, 162, 121]),
    // Keys: they are not in any namespace.
    ("add_key", [248, 286, 217, 309]),
    ("request_key", [249, 287, 218, 310]),
    ("keyctl", [250, 288, 219, 311]),
    // The machine's clock, swap, quotas, accounts, log, processors.
    ("settimeofday", [164, 79, 170, 79]),
    ("stime", [NO, 25, NO, NO]),
    ("clock_settime", [227, 264, 112, 262]),
    ("clock_settime64", [NO, 404, NO, 404]),
    ("swapon", [167, 87, 224, 87]),
    ("swapoff", [168, 115, 225, 115]),
    ("quotactl", [179, 131, 60, 131]),
    ("quotactl_fd", [443; 4]),
    ("acct", [163, 51, 89, 51]),
    ("syslog", [103, 103, 116, 103]),
    ("vhangup", [153, 111, 58, 111]),
    ("iopl", [172, 110, NO, NO]),
    ("ioperm", [173, 101, NO, NO]),
    ("vm86old", [NO, 113, NO, NO]),
    ("vm86", [NO, 166, NO, NO]),
    ("get_mempolicy", [239, 275, 236, 320]),
    ("set_mempolicy", [238, 276, 237, 321]),
    ("set_mempolicy_home_node", [450; 4]),
    ("mbind", [237, 274, 235, 319]),
    ("migrate_pages", [256, 294, 238, 400]),
    ("move_pages", [279, 317, 239, 344]),
    // Ways around permissions, into other processes, into the kernel.
    ("open_by_handle_at", [304, 342, 265, 371]),
    ("fanotify_init", [300, 338, 262, 367]),
    ("lookup_dcookie", [212, 253, 18, 249]),
    ("perf_event_open", [298, 336, 241, 364]),
    ("userfaultfd", [323, 374, 282, 388]),
    ("kcmp", [312, 349, 272, 378]),
    ("pidfd_getfd", [438; 4]),
    ("process_madvise", [440; 4]),
    ("io_uring_setup", [425; 4]),
    ("io_uring_enter", [426; 4]),
    ("io_uring_register", [427; 4]),
    // What nobody needs any more.
    ("uselib", [134, 86, NO, 86]),
    ("ustat", [136, 62, NO, 62]),
    ("sysfs", [139, 135, NO, 135]),
    ("_sysctl", [156, 149, NO, 149]),
    ("nfsservctl", [180, 169, 42, 169]),
];

/// Calls of which some are denied: by their first argument.
const CLONE: [u32; 4] = [56, 120, 220, 120];
const PERSONALITY: [u32; 4] = [135, 136, 92, 136];
const SOCKET: [u32; 4] = [41, 359, 198, 281];

/// `clone3`, with the same number everywhere.
const CLONE3: u32 = 435;

/// The last call that was looked at when the table was made.
const LAST: u32 = 470;

/// The flags of `clone` that make namespaces.
const NAMESPACES: u32 = 0x7e02_0000;

/// Linux as it is, 32-bit addresses, an old kernel's number, both, and the question which one it is.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets to the host of a virtual machine, which no namespace holds off.
const AF_VSOCK: u32 = 40;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0000 | libc::EPERM.cast_unsigned();
const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS.cast_unsigned();

const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Where the kernel shows what is called: the number, the kind of program, the first argument (its lower half: every
/// architecture of the table has that first).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// One instruction: code, steps to skip where the test holds and where not, operand.
type Instruction = (u16, u8, u8, u32);

/// The filter's program: eight bytes for each instruction, in this machine's byte order. Empty where there is none for
/// this architecture.
pub(super) fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(assemble)
}

fn assemble() -> Vec<u8> {
    if ABIS.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<Instruction> = vec![(LOAD, 0, 0, ARCHITECTURE)];
    for abi in ABIS {
        let block = block(abi.column);
        // A block ends in a return, so what follows is for the other kinds.
        all.push((JUMP_IF_EQUAL, 0, steps(block.len()), abi.audit));
        all.extend(block);
    }
    all.push((RETURN, 0, 0, ENOSYS));
    let bytes = |(code, yes, no, operand): &Instruction| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&code.to_ne_bytes());
        (bytes[2], bytes[3]) = (*yes, *no);
        bytes[4..].copy_from_slice(&operand.to_ne_bytes());
        bytes
    };
    all.iter().flat_map(bytes).collect()
}

/// How many instructions a jump skips.
fn steps(count: usize) -> u8 {
    // Proof: the table is a constant, and a test builds the programs of all its columns.
    u8::try_from(count).expect("a block has less than 256 instructions")
}

/// What is done with the calls of one kind of program.
fn block(column: usize) -> Vec<Instruction> {
    // The tail, which the jumps before it lead to.
    let mut tail: Vec<Instruction> = vec![(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ENOSYS)];
    let (eperm, enosys, clone) = (1, 2, 3);
    tail.extend([
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_ANY_BIT, 0, 1, NAMESPACES),
        (RETURN, 0, 0, EPERM),
        (RETURN, 0, 0, ALLOW),
    ]);
    let socket = tail.len();
    tail.extend([
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 0, 1, AF_VSOCK),
        (RETURN, 0, 0, EPERM),
        (RETURN, 0, 0, ALLOW),
    ]);
    let personality = tail.len();
    tail.push((LOAD, 0, 0, FIRST_ARGUMENT));
    for (number, allowed) in PERSONALITIES.into_iter().enumerate() {
        tail.push((JUMP_IF_EQUAL, steps(PERSONALITIES.len() - number), 0, allowed));
    }
    tail.extend([(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]);

    let mut tests: Vec<(u16, u32, usize)> =
        vec![(JUMP_IF_GREATER, LAST, enosys), (JUMP_IF_EQUAL, CLONE3, enosys), (JUMP_IF_EQUAL, CLONE[column], clone)];
    tests.push((JUMP_IF_EQUAL, SOCKET[column], socket));
    tests.push((JUMP_IF_EQUAL, PERSONALITY[column], personality));
    let numbers = DENIED.iter().map(|(_, numbers)| numbers[column]).filter(|number| *number != NO);
    tests.extend(numbers.map(|number| (JUMP_IF_EQUAL, number, eperm)));
    let mut block = vec![(LOAD, 0, 0, NUMBER)];
    for (place, (code, operand, target)) in tests.iter().enumerate() {
        block.push((*code, steps(tests.len() - 1 - place + target), 0, *operand));
    }
    block.extend(tail);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a program returns for a call: the kernel's rules for these few instructions.
    fn run(program: &[Instruction], audit: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let (code, yes, no, operand) = program[at];
            let holds = match code {
                LOAD => {
                    value = match operand {
                        NUMBER => number,
                        ARCHITECTURE => audit,
                        _ => argument,
                    };
                    at += 1;
                    continue;
                }
                RETURN => return operand,
                JUMP_IF_EQUAL => value == operand,
                JUMP_IF_GREATER => value > operand,
                JUMP_IF_ANY_BIT => value & operand != 0,
                _ => panic!("{code}"),
            };
            at += 1 + usize::from(if holds { yes } else { no });
        }
    }

    fn decoded() -> Vec<Instruction> {
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        let decode = |bytes: &[u8]| (u16::from_ne_bytes([bytes[0], bytes[1]]), bytes[2], bytes[3], word(&bytes[4..]));
        program().chunks(8).map(decode).collect()
    }

    #[test]
    fn the_table_is_what_is_denied_in_every_column() {
        for column in [X86_64, I386, GENERIC, ARM] {
            let block = block(column);
            let result = |number, argument| run(&block, 0, number, argument);
            let denied: Vec<u32> = DENIED.iter().map(|(_, numbers)| numbers[column]).collect();
            for number in 0..=LAST {
                let expected = if denied.contains(&number) {
                    EPERM
                } else if number == CLONE3 {
                    ENOSYS
                } else {
                    ALLOW
                };
                assert_eq!(result(number, 0), expected, "{number} in column {column}");
            }
            assert_eq!((result(LAST + 1, 0), result(0x4000_0000, 0)), (ENOSYS, ENOSYS), "new calls, x32");
            for (number, argument, expected) in [
                (CLONE, 17, ALLOW),
                (CLONE, 0x1000_0000, EPERM),
                (CLONE, 0x0002_0011, EPERM),
                (CLONE, 0x003d_0f00, ALLOW),
                (PERSONALITY, 0x8, ALLOW),
                (PERSONALITY, 0xffff_ffff, ALLOW),
                (PERSONALITY, 0x0004_0000, EPERM),
                (SOCKET, 2, ALLOW),
                (SOCKET, AF_VSOCK, EPERM),
            ] {
                assert_eq!(result(number[column], argument), expected, "{} {argument:#x}", number[column]);
            }
            let unique: std::collections::HashSet<_> = denied.iter().filter(|number| **number != NO).collect();
            assert_eq!(unique.len(), denied.iter().filter(|number| **number != NO).count(), "a number stands twice");
        }
    }

    #[test]
    fn each_kind_of_program_has_its_numbers() {
        let program = decoded();
        for abi in ABIS {
            let mount = DENIED.iter().find(|(name, _)| *name == "mount").expect("a row").1[abi.column];
            assert_eq!(run(&program, abi.audit, mount, 0), EPERM);
            assert_eq!(run(&program, abi.audit, 3, 0), ALLOW);
        }
        if !ABIS.is_empty() {
            assert_eq!(run(&program, 0x1234, 3, 0), ENOSYS, "a program of another kind");
            assert!(program.len() < 4096, "more than the kernel takes");
        }
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn the_numbers_are_those_of_this_machine() {
        let column = ABIS[0].column;
        let row = |wanted: &str| {
            let numbers = DENIED.iter().find(|(name, _)| *name == wanted).unwrap_or_else(|| panic!("{wanted}")).1;
            libc::c_long::from(numbers[column])
        };
        macro_rules! same {
            ($($call:ident $name:literal),* $(,)?) => { $( assert_eq!(libc::$call, row($name), $name); )* };
        }
        same!(
            SYS_init_module "init_module", SYS_finit_module "finit_module", SYS_delete_module "delete_module",
            SYS_kexec_load "kexec_load", SYS_kexec_file_load "kexec_file_load", SYS_reboot "reboot", SYS_bpf "bpf",
            SYS_mount "mount", SYS_umount2 "umount2", SYS_pivot_root "pivot_root", SYS_open_tree "open_tree",
            SYS_move_mount "move_mount", SYS_fsopen "fsopen", SYS_fsconfig "fsconfig", SYS_fsmount "fsmount",
            SYS_fspick "fspick", SYS_mount_setattr "mount_setattr", SYS_unshare "unshare", SYS_setns "setns",
            SYS_sethostname "sethostname", SYS_setdomainname "setdomainname", SYS_add_key "add_key",
            SYS_request_key "request_key", SYS_keyctl "keyctl", SYS_settimeofday "settimeofday",
            SYS_clock_settime "clock_settime", SYS_swapon "swapon", SYS_swapoff "swapoff", SYS_quotactl "quotactl",
            SYS_quotactl_fd "quotactl_fd", SYS_acct "acct", SYS_syslog "syslog", SYS_vhangup "vhangup",
            SYS_get_mempolicy "get_mempolicy", SYS_set_mempolicy "set_mempolicy", SYS_mbind "mbind",
            SYS_set_mempolicy_home_node "set_mempolicy_home_node", SYS_migrate_pages "migrate_pages",
            SYS_move_pages "move_pages", SYS_open_by_handle_at "open_by_handle_at",
            SYS_fanotify_init "fanotify_init", SYS_lookup_dcookie "lookup_dcookie",
            SYS_perf_event_open "perf_event_open", SYS_userfaultfd "userfaultfd", SYS_kcmp "kcmp",
            SYS_pidfd_getfd "pidfd_getfd", SYS_process_madvise "process_madvise",
            SYS_io_uring_setup "io_uring_setup", SYS_io_uring_enter "io_uring_enter",
            SYS_io_uring_register "io_uring_register", SYS_nfsservctl "nfsservctl",
        );
        let number = |numbers: [u32; 4]| libc::c_long::from(numbers[column]);
        assert_eq!(
            [libc::SYS_clone, libc::SYS_personality, libc::SYS_socket, libc::SYS_clone3],
            [number(CLONE), number(PERSONALITY), number(SOCKET), libc::c_long::from(CLONE3)]
        );
        #[cfg(target_arch = "x86_64")]
        same!(
            SYS_iopl "iopl", SYS_ioperm "ioperm", SYS_uselib "uselib",
            SYS_ustat "ustat", SYS_sysfs "sysfs", SYS__sysctl "_sysctl",
        );
    }
}
