# Opens an export many times and reads from each connection, then opens more connections that say nothing.
# connections.pl EXPORT OPEN SILENT: says how many were served, and how many of the silent ones stay; then waits for a line
# on its standard input, reads from each once more, and says again how many were served.
use strict;
use IO::Socket::INET;
$SIG{PIPE} = 'IGNORE';
my ($export, $open, $silent) = @ARGV;

sub take {
    my ($socket, $length) = @_;
    my $data = '';
    while (length $data < $length) {
        my $got = sysread $socket, $data, $length - length $data, length $data;
        return unless $got;
    }
    return $data;
}

sub ask_to_open {
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1:10809') or return;
    take($socket, 18) or return;
    my $data = pack('N', length $export) . $export . pack('n', 0);
    syswrite $socket, pack('N', 3) . 'IHAVEOPT' . pack('NN', 7, length $data) . $data;
    for (;;) {
        my $head = take($socket, 20) or return;
        my ($kind, $length) = (unpack 'NNNNN', $head)[3, 4];
        take($socket, $length) or return if $length;
        return $socket if $kind == 1;
        return if $kind & 0x80000000;
    }
}

sub is_served {
    my $socket = shift;
    syswrite $socket, pack('NnnNNNNN', 0x25609513, 0, 0, 0, 1, 0, 0, 512) or return;
    my $head = take($socket, 16) or return;
    return (unpack 'NN', $head)[1] == 0 && take($socket, 512);
}

my @open = grep { defined } map { ask_to_open() } 1 .. $open;
my @silent = grep { defined } map { IO::Socket::INET->new(PeerAddr => '127.0.0.1:10809') } 1 .. $silent;
my $stay = grep { defined take($_, 18) } @silent;
my $served = grep { is_served($_) } @open;
$| = 1;
print "$served served, $stay greeted\n";
exit unless defined <STDIN>;
$served = grep { is_served($_) } @open;
print "$served served\n";
