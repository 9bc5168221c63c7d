//! Which process holds a lock or a port, as far as the kernel tells this user.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The program's name.
    pub name: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl Process {
    fn of(pid: u32) -> Self {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim();
        Self {
            pid,
            name: if name.is_empty() { "a process" } else { name }.to_owned(),
        }
    }
}

/// Who holds a lock on a file. The lock is not tried: that would keep a hub that starts at this moment from it.
pub fn of_lock(file: &Path) -> Option<Process> {
    let inode = fs::metadata(file).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| lock_holder(line, inode)).map(Process::of)
}

/// `1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`: the process, if the file is this one. Only the inode counts, since
/// layered file systems name another device here than to `stat`.
fn lock_holder(line: &str, inode: u64) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let kind = fields.next()?;
    let pid = fields.nth(2)?.parse().ok()?;
    let of = fields.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
    (kind == "FLOCK" && of == inode).then_some(pid)
}

/// A kind of socket, and the states in which it keeps others from its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn tables(self) -> [&'static str; 2] {
        match self {
            Self::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
            Self::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        }
    }

    fn state(self) -> &'static str {
        match self {
            // TCP_LISTEN, and TCP_CLOSE, which is that of a bound socket of UDP.
            Self::Tcp => "0A",
            Self::Udp => "07",
        }
    }
}

/// Who listens on a port. `None` where there is nobody, or nobody that this user may see.
pub fn of_port(transport: Transport, port: u16) -> Option<Process> {
    let tables = transport
        .tables()
        .map(|table| fs::read_to_string(table).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let inodes: Vec<u64> = lines.filter_map(|line| listener(line, transport, port)).collect();
    if inodes.is_empty() {
        return None;
    }
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut holders = pids.filter(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    });
    holders.next().map(Process::of)
}

/// The socket's inode, if a line of `/proc/net/tcp` or `udp` is of this port.
/// `0: 0100007F:2580 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 ...`
fn listener(line: &str, transport: Transport, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let local = fields.get(1)?.rsplit(':').next()?;
    let is_it = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == transport.state();
    if is_it { fields.get(9)?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn this_process_is_found_by_its_ports() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let me = std::process::id();
        let holder = |transport, port| of_port(transport, port).map(|process| process.pid);
        assert_eq!(holder(Transport::Tcp, tcp.local_addr().unwrap().port()), Some(me));
        assert_eq!(holder(Transport::Udp, udp.local_addr().unwrap().port()), Some(me));
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(holder(Transport::Tcp, free), None);
    }

    #[test]
    fn this_process_is_found_by_its_lock() {
        let path = std::env::temp_dir().join(format!("forebay-doctor-lock-{}", std::process::id()));
        let file = fs::File::create(&path).unwrap();
        assert_eq!(of_lock(&path), None);
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(of_lock(&path).map(|process| process.pid), Some(std::process::id()));
        drop(file);
        assert_eq!(of_lock(&path), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(of_lock(&path), None);
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        assert_eq!(
            lock_holder("1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF", 5678),
            Some(1234)
        );
        assert_eq!(
            lock_holder("1: POSIX  ADVISORY  WRITE 1234 fd:01:5678 0 EOF", 5678),
            None
        );
        assert_eq!(
            lock_holder("1: -> FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF", 5678),
            None
        );
        assert_eq!(lock_holder("", 1), None);
        let line = "0: 0100007F:2580 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 1 0 100";
        assert_eq!(listener(line, Transport::Tcp, 0x2580), Some(12345));
        assert_eq!(listener(line, Transport::Udp, 0x2580), None);
        assert_eq!(listener(line, Transport::Tcp, 1), None);
    }
}
