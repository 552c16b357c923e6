//! CloudStack from the sandbox of attachd.service: its credentials, and the addresses that it may connect to.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use attachd::cloud::{Client, Cloud, CloudSettings};

use crate::host::Host;

/// An address of this host that is not on the loopback network, as CloudStack's is.
const ADDRESS: &str = "10.1.1.5";

/// The test that the unit runs, and what tells it where CloudStack is.
const INSIDE: &str = "cloud::ask_cloudstack_from_here";
const URL: &str = "ATTACHD_TEST_CLOUD";

/// Calls CloudStack with the keys of the unit, and prints how it went.
#[tokio::test]
#[ignore = "the next test has the unit run it"]
async fn ask_cloudstack_from_here() {
    let Ok(url) = std::env::var(URL) else { return };
    let mut settings = CloudSettings::new(url.parse().unwrap());
    settings.timeout = Duration::from_secs(4);
    let client = Client::new(settings);
    let volume = client.volume("b3bb9310-1b59-4f62-97e8-cefffdfe3804".parse().unwrap()).await;
    println!("cloudstack said {volume:?}; trouble {:?}", client.has_seen().trouble.map(|trouble| trouble.kind));
}

/// Answers every request with an empty list, and keeps the keys that it was sent.
fn cloudstack() -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, requests) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(&stream);
            let mut length = 0;
            for line in reader.by_ref().lines() {
                let line = line.unwrap().to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |value| value.parse().unwrap());
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = tell.send(String::from_utf8(body).unwrap());
            let answer = "{\"listvolumesresponse\":{}}";
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        }
    });
    (url, requests)
}

/// Runs the test above with everything of attachd.service but its program.
fn ask_from_the_unit(host: &Host, url: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let text = format!(
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nEnvironment={URL}={url}\nExecStart=\n\
         ExecStart={} --ignored --exact --nocapture {INSIDE}\nStandardOutput=file:/run/lab/said\n",
        program.display()
    );
    fs::write("/run/lab/said", "").unwrap();
    host.inside.drop_in("attachd.service", &text).unwrap();
    host.run("systemctl", &["start", "attachd.service"]);
    let said = fs::read_to_string("/run/lab/said").unwrap();
    println!("{said}");
    said
}

#[test]
fn the_unit_reaches_cloudstack_with_its_credentials_only_with_the_shipped_drop_in_and_says_so() {
    let host = Host::installed();
    println!("{}", host.run("ls", &["-l", "/run/credentials/attachd.service"]));
    let key = "/run/credentials/attachd.service/cloudstack-key";
    assert_eq!(host.run("cat", &[key]).trim(), "", "the unit starts without the files");
    host.run("systemctl", &["stop", "attachd.socket", "attachd.service"]);
    host.run("ip", &["link", "set", "lo", "up"]);
    host.run("ip", &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
    let (url, requests) = cloudstack();

    let without = ask_from_the_unit(&host, &url);
    assert!(without.contains("NotAble") && without.contains("put it into /etc/attachd/cloudstack-key"), "{without}");
    for (name, text) in [("cloudstack-key", "THE-KEY"), ("cloudstack-secret", "THE-SECRET")] {
        let path = format!("/etc/attachd/{name}");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let kept_in = ask_from_the_unit(&host, &url);
    assert!(kept_in.contains("trouble Some(KeptIn)") && kept_in.contains("cloudstack.conf"), "{kept_in}");
    assert!(requests.try_iter().next().is_none(), "nothing came out");

    let shipped = fs::read_to_string("/usr/share/attachd/cloudstack.conf").unwrap();
    let folder = "/run/systemd/system/attachd.service.d";
    fs::create_dir_all(folder).unwrap();
    fs::write(format!("{folder}/cloudstack.conf"), shipped.replace("192.0.2.10", ADDRESS)).unwrap();
    host.run("systemctl", &["daemon-reload"]);
    let let_out = ask_from_the_unit(&host, &url);
    assert!(let_out.contains("cloudstack said Ok(None); trouble None"), "the control: {let_out}");
    let request = requests.try_iter().next().unwrap();
    assert!(request.contains("apikey=THE-KEY&") && !request.contains("THE-SECRET"), "{request}");
}
