-- Calls over a Unix socket: PL/Python in the backend talks to a worker on the same machine.
-- Frames are those of pgembed/worker/frames.py.

CREATE OR REPLACE FUNCTION pgembed._talk(
    step text, kind text DEFAULT NULL, model text DEFAULT NULL, model_hash bytea DEFAULT NULL,
    contents text[] DEFAULT NULL, timeout double precision DEFAULT NULL,
    patience double precision DEFAULT 0, reads_itself boolean DEFAULT false,
    OUT answered boolean, OUT vectors text[], OUT left_at bigint, OUT error text, OUT trouble text
)
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
if "line" not in SD:
    import errno
    import os
    import random
    import socket
    import struct
    import time

    HEADER = struct.Struct("<2sBBII")
    MAGIC, VERSION = b"pe", 2
    GREETING, VECTORS, ERROR, LEFT = 0, 16, 17, 18
    KINDS = {"document": 1, "query": 2, "add_model": 3}
    LONGEST = 1 << 30
    PIECE = 1 << 16  # of larger ones malloc() maps each anew
    LATE = 1.0  # seconds for a greeting, where another worker may be quicker
    PLACE = """
        SELECT i.socket_dir AS directory, s.system_identifier || '-' || d.oid || '-' AS prefix
        FROM pgembed.installation AS i, pg_catalog.pg_control_system() AS s,
            pg_catalog.pg_database AS d
        WHERE d.datname = pg_catalog.current_database()
    """

    class Line:
        """This backend's connection to a worker, and the call under way on it."""

        def __init__(self):
            self.socket = None
            self.greeted = False
            self.under_way = False
            self.number = 0
            self.format = {}
            self.silent = set()

        def ask(self, kind, model, model_hash, contents, timeout, reads_itself):
            if self.under_way:
                self.hang_up()
            name = model.encode()
            texts = [text.encode() for text in contents]
            self.count = 0 if kind == "add_model" else len(texts)
            self.number = (self.number + 1) % (1 << 32)
            body = b"".join([
                struct.pack("<IBHBI", int(timeout * 1000), reads_itself, len(name), len(model_hash or b""), len(texts)),
                name, model_hash or b"",
                struct.pack("<%dI" % len(texts), *map(len, texts)), *texts,
            ])
            self.request = HEADER.pack(MAGIC, VERSION, KINDS[kind], self.number, len(body)) + body
            self.sent = 0
            self.trouble = None
            self.under_way = True

        def wait(self, patience):
            """Return (answered, vectors, left_at, error, trouble) within so many seconds."""
            end = time.monotonic() + patience
            while True:
                try:
                    answer = self.go_on(end)
                    self.under_way = False
                    return (True, *answer, None)
                except socket.timeout:
                    return (False, None, None, None, self.trouble)
                except OSError as error:
                    # No worker, or one that died: an answer may come from the next.
                    self.trouble = str(error)
                    self.hang_up()
                remaining = end - time.monotonic()
                if remaining <= 0:
                    return (False, None, None, None, self.trouble)
                time.sleep(min(remaining, 0.01))

        def go_on(self, end):
            if not self.greeted:
                self.dial(end)
            while self.sent < len(self.request):
                self.limit(end)
                self.sent += self.socket.send(memoryview(self.request)[self.sent:])
            kind, number, body = self.receive(end)
            if number != self.number or kind not in (VECTORS, ERROR, LEFT):
                raise OSError("a worker sent frame %d of call %d" % (kind, number))
            if kind == ERROR:
                return None, None, body.decode(errors="replace")
            if kind == LEFT:
                return None, *struct.unpack("<Q", body), None
            return self.texts_of(body), None, None

        def look(self, patience):
            """Return why no worker can be reached, or None."""
            try:
                self.hang_up()
                self.dial(time.monotonic() + patience)
            except OSError as error:
                self.hang_up()
                return str(error)

        def dial(self, end):
            """Connect to a worker that greets; a busy one does so after a while."""
            if self.socket is not None:
                if time.monotonic() > self.dialled + LATE and self.names() != [self.name]:
                    self.silent.add(self.name)
                    raise OSError("a worker did not greet within %g s" % LATE)
                return self.greet(end)
            self.place = plpy.execute(PLACE)[0]
            directory = self.place["directory"]
            status = os.stat(directory)
            if status.st_mode & 0o007:
                raise OSError("everybody may enter %s: run chmod o= on it" % directory)
            names = self.names()
            random.shuffle(names)
            if self.silent.issuperset(names):
                self.silent.clear()
            names.sort(key=self.silent.__contains__)
            self.trouble = None if names else "there is no worker's socket in %s" % directory
            for self.name in names:
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    self.limit(end)
                    self.socket.connect(os.path.join(directory, self.name))
                    self.require_trusted(status)
                    self.received = bytearray()
                    self.dialled = time.monotonic()
                    return self.greet(end)
                except socket.timeout:
                    raise
                except OSError as error:
                    self.trouble = "%s: %s" % (self.name, error)
                self.hang_up()
            raise OSError(self.trouble)

        def names(self):
            return [n for n in os.listdir(self.place["directory"]) if n.startswith(self.place["prefix"])]

        def greet(self, end):
            kind = self.receive(end)[0]
            if kind != GREETING:
                raise OSError("a worker sent frame %d before its greeting" % kind)
            self.greeted, self.trouble = True, None

        def require_trusted(self, directory):
            raw = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            _, user, group = struct.unpack("iII", raw)
            if user not in (0, os.geteuid(), directory.st_uid) and group != directory.st_gid:
                raise OSError("user %d listens there, who is neither the directory's owner nor of its group" % user)

        def receive(self, end):
            """Return kind, number and body of the next frame; what came so far is kept."""
            while True:
                if len(self.received) >= HEADER.size:
                    magic, version, kind, number, length = HEADER.unpack_from(self.received)
                    if (magic, version) != (MAGIC, VERSION) or length > LONGEST:
                        raise OSError("the worker speaks another protocol: restart it with this version of pgembed")
                    if len(self.received) >= HEADER.size + length:
                        body = bytes(memoryview(self.received)[HEADER.size:HEADER.size + length])
                        self.received = self.received[HEADER.size + length:]
                        return kind, number, body
                self.limit(end)
                data = self.socket.recv(PIECE)
                if not data:
                    raise OSError(errno.ECONNRESET, "the worker ended the connection")
                self.received += data

        def limit(self, end):
            self.socket.settimeout(max(end - time.monotonic(), 0.001))

        def texts_of(self, body):
            """Return vectors as pgvector writes them; nine digits keep every bit of a float."""
            count, dimensions = struct.unpack_from("<II", body)
            if count != self.count or len(body) != 8 + 4 * count * dimensions:
                raise OSError("a worker sent %d vectors of %d dimensions in %d bytes" % (count, dimensions, len(body)))
            if count == 0:
                return []
            if dimensions not in self.format:
                self.format = {dimensions: "[" + ",".join(["%.9g"] * dimensions) + "]"}
            form = self.format[dimensions]
            return [form % row for row in struct.iter_unpack("<%df" % dimensions, body[8:])]

        def hang_up(self):
            if self.socket is not None:
                self.socket.close()
            self.socket, self.greeted, self.sent = None, False, 0

    SD["line"] = Line()

line = SD["line"]
if step == "leave":
    line.hang_up()
    line.under_way = False
    return (False, None, None, None, None)
if step == "look":
    return (False, None, None, None, line.look(patience))
if step == "ask":
    line.ask(kind, model, model_hash, contents, timeout, reads_itself)
return line.wait(patience)
$$;
COMMENT ON FUNCTION pgembed._talk(text, text, text, bytea, text[], double precision, double precision, boolean) IS
'One step of a call over this backend''s connection to a worker: ask, wait on, or leave; each returns within patience seconds. reads_itself: vectors may be left in pgembed.call; left_at: they are there. trouble: why there is no worker; look tells that alone.';


CREATE OR REPLACE FUNCTION pgembed._call(
    kind text, model text, contents text[], timeout interval
)
RETURNS @extschema:vector@.vector[]
LANGUAGE plpgsql STABLE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Cancel, statement_timeout and shutdown act between two slices.
    slice CONSTANT double precision := 0.08;
    seconds CONSTANT double precision := extract(epoch FROM timeout);
    deadline CONSTANT timestamptz := clock_timestamp() + timeout;
    -- As long as it takes to embed one text, nothing is to be withdrawn.
    soon CONSTANT double precision := CASE WHEN cardinality(contents) = 1 THEN 0.02 ELSE 0 END;
    model_hash bytea := (SELECT m.hash FROM pgembed.model AS m WHERE m.name = model);
    answer record;
BEGIN
    IF model_hash IS NULL AND kind <> 'add_model' THEN
        PERFORM pgembed._find_model(model);
    END IF;
    answer := pgembed._talk('ask', kind, model, model_hash, contents, seconds, least(seconds, soon),
        kind = 'document' AND cardinality(contents) >= 16 AND pgembed._sees_commits());
    IF NOT answer.answered THEN
        BEGIN
            WHILE NOT answer.answered AND clock_timestamp() < deadline LOOP
                answer := pgembed._talk('wait',
                    patience => least(extract(epoch FROM deadline - clock_timestamp()), slice));
            END LOOP;
            IF NOT answer.answered THEN
                PERFORM pgembed._no_answer(timeout, answer.trouble);
            END IF;
        EXCEPTION
            WHEN query_canceled OR OTHERS THEN
                PERFORM pgembed._talk('leave');
                RAISE;
        END;
    END IF;
    IF answer.error IS NOT NULL THEN
        RAISE EXCEPTION '%', answer.error USING ERRCODE = 'external_routine_exception';
    END IF;
    IF answer.left_at IS NOT NULL THEN
        RETURN pgembed._left_vectors(answer.left_at);
    END IF;
    RETURN answer.vectors::@extschema:vector@.vector[];
END;
$$;
COMMENT ON FUNCTION pgembed._call(text, text, text[], interval) IS
'Ask a worker over a Unix socket and wait for its answer: vectors, or an error. A call given up is withdrawn.';
