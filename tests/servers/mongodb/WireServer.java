// A server that speaks MongoDB's wire protocol, on one file:
//     java -cp 'jars/*' WireServer.java PORT FILE [KEYSTORE USER PASSWORD]
// With a keystore (PKCS #12, of the same password) it speaks TLS, and lets nobody in but the user, by PLAIN.

import de.bwaldvogel.mongo.MongoCollection;
import de.bwaldvogel.mongo.MongoDatabase;
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.CollectionOptions;
import de.bwaldvogel.mongo.backend.CursorRegistry;
import de.bwaldvogel.mongo.backend.QueryResult;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.backend.h2.H2Collection;
import de.bwaldvogel.mongo.backend.h2.H2Database;
import de.bwaldvogel.mongo.bson.BinData;
import de.bwaldvogel.mongo.bson.Document;
import de.bwaldvogel.mongo.exception.MongoServerError;
import de.bwaldvogel.mongo.wire.message.MongoMessage;
import io.netty.channel.Channel;
import java.io.File;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.X509Certificate;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.Spliterators;
import java.util.WeakHashMap;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.h2.mvstore.Cursor;
import org.h2.mvstore.MVMap;

class WireServer {
    private static final Set<String> WRITES =
            Set.of("insert", "update", "delete", "findAndModify", "create", "drop", "dropDatabase", "createIndexes");

    /**
     * The stock backend acknowledges a write before it is in the file; this one after. It also fails where two
     * clients first use a collection at once; here one waits for the other.
     */
    private static class DurableBackend extends H2Backend {
        DurableBackend(String file) {
            super(file);
        }

        @Override
        public synchronized Document handleMessage(MongoMessage message) {
            Document answer = super.handleMessage(message);
            if (WRITES.contains(message.getDocument().keySet().iterator().next())) {
                commit();
            }
            return answer;
        }

        @Override
        protected MongoDatabase openOrCreateDatabase(String name) {
            return new KeyedDatabase(name);
        }

        private class KeyedDatabase extends H2Database {
            KeyedDatabase(String name) {
                super(name, getMvStore(), getCursorRegistry());
            }

            @Override
            protected MongoCollection<Object> openOrCreateCollection(String name, CollectionOptions options) {
                String place = getFullCollectionNamespace(name);
                return new KeyedCollection(
                        this,
                        name,
                        options,
                        getMvStore().openMap("databases." + place),
                        getMvStore().openMap("meta." + place),
                        cursorRegistry);
            }
        }
    }

    /** The stock backend asks for no password; this one does what it is told only after the right one. */
    private static class GuardedBackend extends DurableBackend {
        private static final Set<String> OPEN = Set.of("hello", "ismaster", "isMaster");
        private final Set<Channel> known = Collections.synchronizedSet(Collections.newSetFromMap(new WeakHashMap<>()));
        private final byte[] credentials;

        GuardedBackend(String file, String user, String password) {
            super(file);
            credentials = ("\0" + user + "\0" + password).getBytes(StandardCharsets.UTF_8);
        }

        @Override
        public Document handleMessage(MongoMessage message) {
            String command = message.getDocument().keySet().iterator().next();
            if (command.equals("saslStart")) {
                if (!Arrays.equals(((BinData) message.getDocument().get("payload")).getData(), credentials)) {
                    throw new MongoServerError(18, "AuthenticationFailed", "Authentication failed.");
                }
                known.add(message.getChannel());
                Document done = new Document("conversationId", 1).append("done", true);
                return done.append("payload", new BinData(new byte[0])).append("ok", 1.0);
            }
            if (!OPEN.contains(command) && !known.contains(message.getChannel())) {
                throw new MongoServerError(13, "Unauthorized", "command " + command + " requires authentication");
            }
            return super.handleMessage(message);
        }
    }

    /** The stock collection reads all its documents for all but the plainest filter; this one goes by the key. */
    private static class KeyedCollection extends H2Collection {
        private final MVMap<Object, Document> documents;

        KeyedCollection(
                MongoDatabase database,
                String name,
                CollectionOptions options,
                MVMap<Object, Document> documents,
                MVMap<String, Object> meta,
                CursorRegistry cursors) {
            super(database, name, options, documents, meta, cursors);
            this.documents = documents;
        }

        @Override
        protected QueryResult matchDocuments(
                Document query, Document order, int skip, int limit, int batch, Document projection) {
            Object key = query.get("_id");
            Stream<Document> found;
            if (key instanceof String) {
                found = Stream.ofNullable(getDocument(key));
            } else if (limit != 0 && skip == 0 && new Document("_id", 1).equals(order)) {
                Object first = key instanceof Document range ? range.getOrDefault("$gt", range.get("$gte")) : null;
                Cursor<Object, Document> cursor = documents.cursor(first, null, false);
                found = StreamSupport.stream(Spliterators.spliteratorUnknownSize(cursor, 0), false)
                        .map(one -> cursor.getValue())
                        .filter(document -> documentMatchesQuery(document, query))
                        .limit(Math.abs(limit));
            } else {
                return super.matchDocuments(query, order, skip, limit, batch, projection);
            }
            return matchDocumentsFromStream(found, query, order, skip, limit, batch, projection);
        }
    }

    /** The oldest version that the driver accepts; the server's own enumeration stops before it. */
    private static class Version implements MongoVersion {
        @Override
        public List<Integer> getVersionArray() {
            return List.of(4, 4, 0);
        }

        @Override
        public int getWireVersion() {
            return 9;
        }
    }

    public static void main(String[] arguments) throws Exception {
        boolean guarded = arguments.length > 2;
        DurableBackend backend = guarded
                ? new GuardedBackend(arguments[1], arguments[3], arguments[4])
                : new DurableBackend(arguments[1]);
        MongoServer server = new MongoServer(backend.version(new Version()));
        if (guarded) {
            KeyStore keys = KeyStore.getInstance(new File(arguments[2]), arguments[4].toCharArray());
            String alias = keys.aliases().nextElement();
            PrivateKey key = (PrivateKey) keys.getKey(alias, arguments[4].toCharArray());
            server.enableSsl(key, null, (X509Certificate) keys.getCertificate(alias));
        }
        server.bind("127.0.0.1", Integer.parseInt(arguments[0]));
        Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    }
}
