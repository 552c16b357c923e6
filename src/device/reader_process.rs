//! A process that reads attributes which may never answer: a virtio disk's serial is a request to the hypervisor, and whoever
//! waits for it when the storage stalls cannot even be killed. A thread of the daemon in that state would keep the daemon from
//! ending, and its files (the store, its lock) from the next one.
//!
//! The daemon opens the attribute, which never blocks, and hands the open file over; the process reads each on a thread of its
//! own and sends back what it got. It is the daemon's own program, started when the first serial is to be read, and ends by
//! itself when the daemon does.

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

/// The word on the command line that makes attachd this process.
pub const ARGUMENT: &str = "read-attributes";

/// sysfs gives an attribute whole in one read, and never more than a page.
const PAGE: usize = 4096;

/// Number of the question, and the error; 0: none.
const HEAD: usize = 12;

/// How attributes are read in this process.
static READING: Mutex<Reading> = Mutex::new(Reading::Here);

enum Reading {
    /// By whoever wants to know.
    Here,
    /// By another process, which is this program.
    Outside { program: PathBuf, process: Option<Arc<Process>> },
}

type Answer = io::Result<Vec<u8>>;

/// The process, as the daemon sees it.
struct Process {
    socket: OwnedFd,
    questions: AtomicU64,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    ended: AtomicBool,
}

/// From now on attributes that may never answer are read by another process, which is this program.
pub fn begin(program: PathBuf) {
    *locked(&READING) = Reading::Outside { program, process: None };
}

/// Reads an attribute that was just opened. May block for ever, but in no way that keeps this process from ending.
pub(super) fn read(attribute: &OwnedFd) -> Answer {
    let Some(asked) = process()? else { return read_here(attribute.as_fd()) };
    match asked.ask(attribute.as_fd()) {
        // It has just ended: the question was not taken.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            asked.ended.store(true, Ordering::Release);
            process()?.map_or_else(|| read_here(attribute.as_fd()), |another| another.ask(attribute.as_fd()))
        }
        answer => answer,
    }
}

/// The process that is asked, started if there is none. `None`: reading is done here.
fn process() -> io::Result<Option<Arc<Process>>> {
    let mut reading = locked(&READING);
    let Reading::Outside { program, process } = &mut *reading else { return Ok(None) };
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
        // The thread first waits for the process: without a thread it is still here to be reaped.
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
        // It may have ended before the question was noted: then nobody answers it any more.
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

    /// Hands on what the process answers, until it ends.
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
        // Whoever waits hears of the end by this.
        locked(&self.waiting).clear();
        // What it hangs in may not let it end; it is nobody's business then.
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

/// What the process does: standard input is the socket.
pub fn serve() -> ExitCode {
    let socket = Arc::new(io::stdin());
    while let Ok(Some((question, attribute))) = next(socket.as_fd()) {
        let answers = Arc::clone(&socket);
        let read = move || reply(answers.as_fd(), question, read_here(attribute.as_fd()));
        if let Err(error) = thread::Builder::new().spawn(read) {
            reply(socket.as_fd(), question, Err(error));
        }
    }
    // Not the threads, which may hang.
    std::process::exit(0)
}

/// The next question; `None` when there are no more.
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
    // If nobody listens any more, the next question does not come either.
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
