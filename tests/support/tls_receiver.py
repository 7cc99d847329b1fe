"""A receiver behind TLS: tls_receiver.py https|smtps|starttls CERTIFICATE KEY. Prints its port, then a line for each message."""
import socket
import ssl
import sys
import threading

manner, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


def https(connection):
    lines = connection.makefile("rb")
    length = 0
    while (line := lines.readline().strip()):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    lines.read(length)
    print("message", flush=True)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def smtp(connection, greet=True, offer=b""):
    lines = connection.makefile("rb")
    if greet:
        connection.sendall(b"220 sink\r\n")
    while (line := lines.readline()):
        verb = line.split()[0].upper() if line.split() else b""
        if verb == b"EHLO":
            connection.sendall(b"250-sink\r\n" + offer + b"250 8BITMIME\r\n")
        elif verb == b"STARTTLS":
            connection.sendall(b"220 go on\r\n")
            return smtp(context.wrap_socket(connection, server_side=True), greet=False)
        elif verb == b"DATA":
            connection.sendall(b"354 go on\r\n")
            while lines.readline() not in (b".\r\n", b""):
                pass
            print("message", flush=True)
            connection.sendall(b"250 ok\r\n")
        elif verb == b"QUIT":
            connection.sendall(b"221 bye\r\n")
            return
        else:
            connection.sendall(b"250 ok\r\n")


def serve(connection):
    try:
        if manner == "starttls":
            smtp(connection, offer=b"250-STARTTLS\r\n")
        else:
            secure = context.wrap_socket(connection, server_side=True)
            https(secure) if manner == "https" else smtp(secure)
    except (ssl.SSLError, OSError):
        pass
    finally:
        connection.close()


server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
