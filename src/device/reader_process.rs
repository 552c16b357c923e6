//! A process that reads attributes whose read may never return. A virtio disk's serial is a request to the
//! hypervisor. If the storage stalls, the reading thread hangs and cannot be killed. Such a thread in the daemon
//! would keep the daemon from ending, and would keep its files (the store and its lock) from the next daemon.
//!
//! The daemon opens the attribute, which never blocks, and sends the open file to the process. The process reads each
//! file on a thread of its own and sends back the result. The process is the same program as the daemon. It is
//! started when the first serial is read, and it ends when the daemon does.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};

use crate::limits;

/// The command-line argument that makes attachd this process.
pub const ARGUMENT: &str = "read-attributes";

/// The size of one read. sysfs returns a whole attribute in one read, at most one page.
const PAGE: usize = 4096;

/// The size of an answer's head: the request's number, and an error number (0: no error).
const HEAD: usize = 12;

/// How this process reads attributes.
static READING: Mutex<ReadMode> = Mutex::new(ReadMode::Here);

enum ReadMode {
    /// In the calling thread.
    Here,
    /// In another process of the same program.
    Outside { program: PathBuf, process: Option<Arc<Process>> },
}

type Answer = io::Result<Vec<u8>>;

/// The reader process, as the daemon sees it.
struct Process {
    socket: OwnedFd,
    questions: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    ended: AtomicBool,
}

/// From now on reads slow attributes in another process, with this program.
pub fn begin(program: PathBuf) {
    *locked(&READING) = ReadMode::Outside { program, process: None };
}

/// Reads an attribute that was just opened. May block for ever, but does not keep this process from ending.
pub(super) fn read(attribute: &OwnedFd) -> Answer {
    let Some(asked) = process()? else { return read_here(attribute.as_fd()) };
    match asked.ask(attribute.as_fd()) {
        // The process has just ended and has not received the request.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            asked.ended.store(true, Ordering::Release);
            process()?.map_or_else(|| read_here(attribute.as_fd()), |another| another.ask(attribute.as_fd()))
        }
        answer => answer,
    }
}

/// Returns the reader process, started if there is none. `None`: attributes are read in this process.
fn process() -> io::Result<Option<Arc<Process>>> {
    let mut reading = locked(&READING);
    let ReadMode::Outside { program, process } = &mut *reading else { return Ok(None) };
    if let Some(process) = process.as_ref().filter(|process| !process.ended.load(Ordering::Acquire)) {
        return Ok(Some(Arc::clone(process)));
    }
    let started = Process::start(program).map_err(|error| {
        io::Error::new(error.kind(), format!("the process that reads serials cannot be started: {error}"))
    })?;
    *process = Some(Arc::clone(&started));
    Ok(Some(started))
}

impl Process {
    fn start(program: &PathBuf) -> io::Result<Arc<Self>> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut child = Command::new(program)
            .arg(ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|error| limits::explained(limits::Attempt::Thread, error))?;
        let process = Arc::new(Self {
            socket: ours,
            questions: AtomicU64::new(0),
            waiting: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let listener = Arc::clone(&process);
        // The thread waits for the child. If no thread can be started, the child is still here to be reaped.
        let (hand_over, handed_over) = mpsc::channel();
        let begun = thread::Builder::new().name("serials".to_owned()).spawn(move || {
            if let Ok(child) = handed_over.recv() {
                listener.listen(child);
            }
        });
        if let Err(error) = begun {
            let _ = child.kill();
            let _ = child.wait();
            return Err(limits::explained(limits::Attempt::Thread, error));
        }
        let _ = hand_over.send(child);
        Ok(process)
    }

    fn ask(&self, attribute: BorrowedFd<'_>) -> Answer {
        let question = self.questions.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = mpsc::channel();
        locked(&self.waiting).insert(question, reply);
        if let Err(error) = self.hand_over(question, attribute) {
            locked(&self.waiting).remove(&question);
            return Err(error);
        }
        // The process may have ended before the request was noted; then nobody would answer the request.
        if self.ended.load(Ordering::Acquire) {
            locked(&self.waiting).remove(&question);
        }
        answer
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the process that reads serials has ended; it is started again")))
    }

    fn hand_over(&self, question: u64, attribute: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut files = SendAncillaryBuffer::new(&mut space);
        let file = [attribute];
        if !files.push(SendAncillaryMessage::ScmRights(&file)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        sendmsg(&self.socket, &[IoSlice::new(&question.to_ne_bytes())], &mut files, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Passes on the process's answers until it ends.
    fn listen(&self, mut child: Child) {
        let mut message = [0; HEAD + PAGE];
        loop {
            match rustix::io::read(&self.socket, &mut message) {
                Err(Errno::INTR) => {}
                Ok(length) if length >= HEAD => self.hand_on(&message[..length]),
                _ => break,
            }
        }
        self.ended.store(true, Ordering::Release);
        // Dropping the senders tells each caller that the process has ended.
        locked(&self.waiting).clear();
        // The process may hang in the kernel and not end; then nothing more can be done.
        let _ = child.try_wait();
        let _ = child.kill();
        let _ = child.wait();
    }

    fn hand_on(&self, message: &[u8]) {
        let (head, bytes) = message.split_at(HEAD);
        let (question, error) = head.split_at(8);
        let question = u64::from_ne_bytes(question.try_into().unwrap_or_default());
        let error = i32::from_ne_bytes(error.try_into().unwrap_or_default());
        let answer = if error == 0 { Ok(bytes.to_vec()) } else { Err(io::Error::from_raw_os_error(error)) };
        if let Some(reply) = locked(&self.waiting).remove(&question) {
            let _ = reply.send(answer);
        }
    }
}

/// Runs the reader process; standard input is the socket.
pub fn serve() -> ExitCode {
    let socket = Arc::new(io::stdin());
    while let Ok(Some((question, attribute))) = next(socket.as_fd()) {
        let answers = Arc::clone(&socket);
        let read = move || reply(answers.as_fd(), question, read_here(attribute.as_fd()));
        if let Err(error) = thread::Builder::new().spawn(read) {
            reply(socket.as_fd(), question, Err(error));
        }
    }
    // Threads may hang, so the process does not wait for them.
    std::process::exit(0)
}

/// Receives the next request; `None` when there are no more.
fn next(socket: BorrowedFd<'_>) -> io::Result<Option<(u64, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut files = RecvAncillaryBuffer::new(&mut space);
    let mut question = [0; 8];
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut question)], &mut files, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.bytes < question.len() {
        return Ok(None);
    }
    let file = files.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let file = file.ok_or_else(|| io::Error::other("a question without a file"))?;
    Ok(Some((u64::from_ne_bytes(question), file)))
}

fn reply(socket: BorrowedFd<'_>, question: u64, answer: Answer) {
    let (error, bytes) = match answer {
        Ok(bytes) => (0, bytes),
        Err(error) => (error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()), Vec::new()),
    };
    let message = [&question.to_ne_bytes()[..], &error.to_ne_bytes(), &bytes].concat();
    // If the daemon does not listen any more, there is no next request either.
    let _ = send(socket, &message, SendFlags::NOSIGNAL);
}

fn read_here(attribute: BorrowedFd<'_>) -> Answer {
    let mut page = [0; PAGE];
    let length = rustix::io::read(attribute, &mut page)?;
    Ok(page[..length].to_vec())
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}
