#!/usr/bin/perl
# Asks for exports again and again and looks whose bytes come: hammer.pl EXPORT:SERIAL...
# Every sector of a right disk begins with its serial and its number (disk.rs). A refusal is anything without bytes: no
# connection, no such export, an error. On SIGTERM it tells in /run/hammer/counts how many were right, refused and wrong.
# Who reads the pipe /run/hammer/right gets a line once there were more than a hundred right answers; /run/hammer/enough
# waits for as many refusals, too. For perl-base, which every Debian has.
use strict;
use warnings;
use IO::Socket::INET;

my $place = "/run/hammer";
my @targets = map { [split /:/] } @ARGV;
my %count = (right => 0, refused => 0, wrong => 0);
my $done = 0;
$SIG{TERM} = sub { $done = 1 };
$SIG{PIPE} = "IGNORE";

sub take {
    my ($socket, $length) = @_;
    my $bytes = "";
    while (length $bytes < $length) {
        sysread($socket, $bytes, $length - length $bytes, length $bytes) or return;
    }
    return $bytes;
}

# A connection to an export, with the export's size.
sub connected {
    my ($export) = @_;
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:10809", Timeout => 10) or return;
    take($socket, 18) // return;
    my $go = pack("N", length $export) . $export . pack("n", 0);
    # Fixed newstyle without zeroes; NBD_OPT_GO.
    syswrite $socket, pack("N", 3) . "IHAVEOPT" . pack("NN", 7, length $go) . $go or return;
    my $size;
    while (1) {
        my (undef, undef, undef, $kind, $length) = unpack("NNNNN", take($socket, 20) // return);
        my $body = $length ? take($socket, $length) // return : "";
        return [$socket, $size] if $kind == 1;
        return if $kind & 0x80000000;
        $size = unpack("Q>", substr $body, 2, 8) if $kind == 3 && unpack("n", $body) == 0;
    }
}

sub request {
    my ($connection, $command, $offset, $length) = @_;
    return syswrite $connection->[0], pack("NnnQ>Q>N", 0x25609513, 0, $command, 1, $offset, $length);
}

# The bytes of one sector.
sub sector {
    my ($connection, $number) = @_;
    request($connection, 0, $number * 512, 512) or return;
    my (undef, $error) = unpack("NN", take($connection->[0], 16) // return);
    return if $error;
    return take($connection->[0], 512);
}

# Writes to a pipe, once, and does not wait for its reader.
my %told;
sub tell_pipe {
    my ($name) = @_;
    return if $told{$name}++ || fork;
    $SIG{TERM} = "DEFAULT";
    open my $pipe, ">", "$place/$name";
    print $pipe "$name\n";
    exit;
}

# With HOLD, each export is asked for over one connection, which is kept whatever the answers.
my %held;
my $turn = 0;
until ($done) {
    my ($export, $serial) = @{ $targets[$turn++ % @targets] };
    my $connection = $ENV{HOLD} ? $held{$export} //= connected($export) : connected($export);
    my $outcome = "refused";
    my $number = $connection ? int rand $connection->[1] / 512 : 0;
    my $bytes = $connection && sector($connection, $number);
    # The signal has cut the answer short.
    last if $done;
    if (defined $bytes) {
        my $expected = sprintf "%s %011d", $serial, $number;
        $outcome = substr($bytes, 0, length $expected) eq $expected ? "right" : "wrong";
        print "WRONG: $export, sector $number: ", substr($bytes, 0, 32), "\n" if $outcome eq "wrong";
    }
    request($connection, 2, 0, 0) if $connection && !$ENV{HOLD};
    $count{$outcome}++;
    tell_pipe("right") if $count{right} > 100;
    tell_pipe("enough") if $count{right} > 100 && $count{refused} > 100;
}
open my $file, ">", "$place/counts" or die;
print $file "right $count{right} refused $count{refused} wrong $count{wrong}\n";
