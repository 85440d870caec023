/* What is done in the browser, and told to the test: each scene returns what it found. */
'use strict';

const place = () => document.getElementById('view');
const copyOf = thing => JSON.parse(JSON.stringify(thing));
const words = node => node.textContent.replace(/\s+/g, ' ').trim();
const pause = ms => new Promise(done => window.setTimeout(done, ms));

function router(given) {
	window.UCI = copyOf(given.uci || { network: {}, ddpd: { main: { '.name': 'main', '.type': 'ddpd', enabled: '1' } } });
	window.FILES = Object.assign({}, given.files);
	window.UBUS.system = { info: () => ({ uptime: given.uptime || 1000 }) };
	window.UBUS['network.interface'] = { dump: () => ({ 'interface': given.nets || Object.values(window.UCI.network || {})
		.filter(net => net['.type'] == 'interface' && net.disabled != '1').map(net => ({ 'interface': net['.name'], up: false, pending: false,
			proto: net.proto, device: net.device, l3_device: net.device, errors: [] })) }) };
	window.TRANSLATED = new Set();
	poll.calls.length = 0;
	form.maps.length = 0;
	ui.hideModal();
	dom.content(place(), []);
}

const KEYFILE = () => ({ '/etc/ddpd/key.pub': DATA.key + '\n' });

/* A table by the name it has, as lists of texts. */
function rows(name, within) {
	const node = (within || place()).querySelector('table[data-name="' + name + '"]');

	return node ? [ ...node.querySelectorAll('tr') ].map(row => [ ...row.children ].map(words)) : null;
}

/* What LuCI draws for every protocol, in the place of what a protocol has of that name. */
function luciOwn(s) {
	for (const [ Class, name, title ] of [ [ form.Flag, 'defaultroute', 'Use default gateway' ], [ form.Value, 'metric', 'Use gateway metric' ] ]) {
		s.children = s.children.filter(o => o.option != name);
		s.taboption('advanced', Class, name, title);
	}
	s.getOption('defaultroute').default = '1';
	s.getOption('metric').datatype = 'uinteger';
}

function protocolForm(sid) {
	loaded('protocol.ddpd');

	const m = new form.Map('network', 'Interface', '');
	const s = m.section(form.NamedSection, sid, 'interface', 'Interface: ' + sid);

	s.tab('general', 'General Settings');
	s.tab('advanced', 'Advanced Settings');

	const protocol = new network.protocols.ddpd(sid);

	protocol.renderFormOptions(s);
	protocol.options = s.children.map(o => o.option);
	luciOwn(s);

	return m.render().then(node => {
		dom.content(place(), [ node ]);
		return { m, s, protocol };
	});
}

function configForm() {
	return shown('view.ddpd.config').then(() => form.maps[form.maps.length - 1]);
}

function sectionOf(m, type) {
	return m.children.find(s => s.sectiontype == type);
}

/* Through the page, as somebody would: edit, set, save. */
function eachSaved(m, change) {
	let chain = Promise.resolve();

	for (const s of m.children)
		for (const sid of s.cfgsections())
			chain = chain.then(() => (s instanceof form.GridSection) ? s.renderMoreOptionsModal(sid) : null).then(() => {
				s.children.forEach(o => { if (o.modalonly !== false || !(s instanceof form.GridSection)) change(s, o, sid); });
				const save = document.querySelector('#modal_overlay .cbi-button-save');

				if (s instanceof form.GridSection)
					save.click();
			});

	return chain.then(() => m.save());
}

const SCENES = {
	protocol: () => {
		router({ uci: DATA.uci, files: KEYFILE() });
		window.UBUS.interfaces = { wan6d: { device: 'eth1', l3_device: 'eth1' } };
		return protocolForm('wan6d').then(({ m, s, protocol }) => {
			const before = copyOf(window.UCI.network.wan6d);
			const told = {
				i18n: protocol.getI18n(), apk: protocol.getPackageName(), opkg: protocol.getOpkgPackage(),
				floating: protocol.isFloating(), virtual: protocol.isVirtual(), ifname: protocol.getIfname(),
				devices: protocol.getDevices(), contains: protocol.containsDevice('eth1'), down: new network.protocols.ddpd('none').getIfname(),
				errors: network.errors, options: s.children.map(o => [ o.option, o.tab ]), own: words(place()), own_options: protocol.options,
				flags: s.children.filter(o => o instanceof form.Flag).map(o => [ o.option, o.default ]),
				rows: place().querySelectorAll('.cbi-value').length
			};

			return m.save().then(() => Object.assign(told, { before: before, after: copyOf(window.UCI.network.wan6d) }));
		});
	},

	protocolFresh: () => {
		router({ uci: { network: { w: { '.name': 'w', '.type': 'interface', proto: 'ddpd', device: '@wan', ask: '0.0.0.0/28 on @guest' } } } });
		return protocolForm('w').then(({ s, m }) => {
			const told = { text: words(place()), ask: s.getOption('ask').formvalue('w') };

			return m.save().then(() => ({}), why => ({ why: String(why) })).then(failed => Object.assign(told, failed));
		});
	},

	protocolKey: () => {
		router({ uci: { network: { w: { '.name': 'w', '.type': 'interface', proto: 'ddpd', device: '@wan', grantor: [ 'a.example' ], key: DATA.key } } },
			files: KEYFILE() });
		return protocolForm('w').then(({ s, m }) => {
			const told = { text: words(place()), buttons: place().querySelectorAll('.ddpd-copy').length };

			return m.save().then(() => Object.assign(told, { after: copyOf(window.UCI.network.w) }));
		});
	},

	protocolValidators: () => {
		router({ uci: DATA.uci });
		return protocolForm('wan6d').then(({ s }) => DATA.interface_values.map(([ option, value ]) => {
			const o = s.getOption(option);

			return (o.datatype && o.datatypeWrong(value)) ? 'datatype' : o.validate ? o.validate('wan6d', value) : true;
		}));
	},

	/* With its key where it usually is. */
	introduce: () => {
		const given = copyOf(DATA.uci);

		delete given.ddpd.main.key;
		router({ uci: given, files: KEYFILE() });
		return configForm().then(() => words(document.getElementById('ddpd-introduce')));
	},

	config: () => {
		router({ uci: DATA.uci, files: KEYFILE() });
		return configForm().then(m => {
			const told = {
				options: m.children.map(s => [ s.sectiontype, s.children.map(o => o.option) ]),
				tabs: m.children.map(s => [ s.sectiontype, s.children.filter(o => !o.tab).map(o => o.option) ]),
				titles: [].concat(...m.children.map(s => s.children.map(o => [ o.option, o.title, o.description ]))),
				intro: words(document.getElementById('ddpd-introduce')),
				folded: place().querySelectorAll('.ddpd-fold').length,
				heads: [ ...place().querySelectorAll('h3') ].map(words), table: words(place()),
				pools: sectionOf(m, 'grantee').getOption('pools').keylist, devices: sectionOf(m, 'ndp').getOption('device').keylist,
				grantors: sectionOf(m, 'tunnel').getOption('grantor').keylist,
				before: copyOf(window.UCI.ddpd)
			};

			return eachSaved(m, () => {}).then(() => Object.assign(told, { after: copyOf(window.UCI.ddpd) }));
		});
	},

	/* Sections that have nothing yet are given everything, by their fields. */
	configFilled: () => {
		const bare = { network: {}, ddpd: {} };

		for (const sid in DATA.uci.ddpd) {
			const one = DATA.uci.ddpd[sid];

			bare.ddpd[sid] = { '.name': sid, '.type': one['.type'] };
			if (one.name)
				bare.ddpd[sid].name = one.name;
		}
		router({ uci: bare });
		return configForm().then(m => eachSaved(m, (s, o, sid) => {
			if (DATA.uci.ddpd[sid][o.option] != null)
				o.widgets[sid].set(DATA.uci.ddpd[sid][o.option]);
		})).then(() => copyOf(window.UCI.ddpd));
	},

	/* What is wrong is not saved; what was written in other ways is understood. */
	configStrange: () => {
		router({ uci: { network: {}, ddpd: {
			g: { '.name': 'g', '.type': 'grantor', key: DATA.key, address: 'a b', ask: '::/56 on br-lan', install: '0', release: 'on' } } } });
		return configForm().then(m => {
			const s = sectionOf(m, 'grantor');

			return s.renderMoreOptionsModal('g').then(() => {
				const told = { ask: s.getOption('ask').formvalue('g'), install: s.getOption('install').formvalue('g'), text: words(place()),
					release: s.getOption('release').formvalue('g'), address: s.getOption('address').formvalue('g'), main: copyOf(window.UCI.ddpd.main) };

				const refusals = {};

				for (const [ option, value ] of [ [ 'ask', [ '::/200' ] ], [ 'key', 'short' ], [ 'key', '' ] ]) {
					s.getOption(option).widgets.g.set(value);
					try {
						s.getOption(option).parse('g');
					}
					catch (why) {
						refusals[option + value] = String(why);
					}
				}
				return Object.assign(told, { refusals: refusals, after: copyOf(window.UCI.ddpd.g) });
			});
		});
	},

	configWithout: () => {
		router({ uci: { ddpd: {} } });
		return configForm().then(() => ({ intro: words(document.getElementById('ddpd-introduce')), main: window.UCI.ddpd.main,
			folded: [ ...place().querySelectorAll('.ddpd-fold') ].map(node => [ words(node.querySelector('summary')), node.open ]) }));
	},

	/* A pool and a grantor come, one pool goes, and the page stays as it was loaded. */
	configAdded: () => {
		router({ uci: DATA.uci, files: KEYFILE() });
		return configForm().then(m => {
			const pools = sectionOf(m, 'grantee').getOption('pools'), grantor = sectionOf(m, 'tunnel').getOption('grantor');
			const offered = () => sectionOf(m, 'grantee').renderMoreOptionsModal('alice').then(() => copyOf(pools.keylist))
				.then(names => sectionOf(m, 'tunnel').renderMoreOptionsModal('tunnel0').then(() => ({ pools: names, grantors: copyOf(grantor.keylist) })));
			const told = {};

			return offered().then(found => {
				told.before = found;
				uci.add('ddpd', 'pool', 'fresh');
				uci.add('ddpd', 'ndp', 'eth7');
				uci.set('ddpd', uci.add('ddpd', 'grantor', 'late'), 'name', 'exit9');
				uci.remove('ddpd', 'home_');
				return offered();
			}).then(found => {
				told.after = found;
				pools.widgets.alice.set([ 'fresh' ]);
				grantor.widgets.tunnel0.set('exit9');
				pools.parse('alice');
				grantor.parse('tunnel0');
				told.written = { pools: window.UCI.ddpd.alice.pools, grantor: window.UCI.ddpd.tunnel0.grantor };
				return m.render();
			}).then(node => {
				told.rows = {};
				for (const row of node.querySelectorAll('tr[data-sid]'))
					told.rows[row.getAttribute('data-sid')] = [ ...row.children ].map(words);
				return told;
			});
		});
	},

	validators: () => {
		router({ uci: DATA.uci });
		return configForm().then(m => DATA.values.map(([ type, option, value ]) => {
			const o = sectionOf(m, type).getOption(option);

			return (o == null) ? 'no field' : o.keylist.length && o instanceof form.ListValue ? o.keylist.indexOf(value) >= 0 || 'no choice'
				: o instanceof form.Flag ? [ o.enabled, o.disabled ].indexOf(value) >= 0 || 'no choice' : o.validate('x', value);
		}));
	},

	/* Of a daemon that ran. */
	real: () => {
		router({ uptime: DATA.real_grantor.uptime + 30, files: Object.assign(KEYFILE(), { '/var/run/ddpd/ddpd.json': JSON.stringify(DATA.real_grantor),
			'/var/run/ddpd/if-wan6d.json': JSON.stringify(DATA.real_grantee) }) });
		return shown('view.ddpd.status').then(() => [ ...document.querySelectorAll('.ddpd-card') ].map(card => ({
			text: words(card), pools: rows('pools', card), granted: rows('granted', card), held: rows('held', card),
			grantors: rows('grantors', card), counters: rows('counters', card) })));
	},

	status: () => {
		router({ uptime: 1000, files: { '/var/run/ddpd/ddpd.json': JSON.stringify(DATA.status) } });
		return shown('view.ddpd.status').then(() => {
			const told = {};

			for (const name of [ 'pools', 'granted', 'held', 'grantors', 'refused', 'ndp', 'wireguard', 'counters' ])
				told[name] = rows(name);
			told.every = poll.calls.map(call => call[1]);
			told.bars = [ ...place().querySelectorAll('.cbi-progressbar') ].map(node => [ node.title, node.firstChild.style.background ]);
			told.notices = [ ...place().querySelectorAll('.alert-message') ].map(words);
			told.text = words(place());
			told.closed = !place().querySelector('details').open;
			place().querySelector('details').open = true;
			window.UBUS.system = { info: () => ({ uptime: 1605 }) };
			return poll.tick().then(() => {
				told.later = { held: rows('held'), granted: rows('granted'), open: place().querySelector('details').open,
					notices: [ ...place().querySelectorAll('.alert-message') ].map(words) };
				window.UBUS.system = { info: () => ({ uptime: 10000 }) };
				return poll.tick();
			}).then(() => Object.assign(told, { end: rows('held'), endNotices: [ ...place().querySelectorAll('.alert-message') ].map(words) }));
		});
	},

	hostile: () => {
		const said = copyOf(DATA.status), bad = '<img src=x onerror="window.OWNED = true">%s%h';

		const spoil = thing => {
			for (const name in thing)
				if (typeof(thing[name]) == 'string')
					thing[name] = bad;
				else if (thing[name] && typeof(thing[name]) == 'object')
					spoil(thing[name]);
		};

		spoil(said);
		said.counters = { [bad]: 1 };
		said.ndp[0].ignored = { [bad]: 1 };
		said.granted[0].hostname = bad;
		router({ files: { '/etc/ddpd/key.pub': bad, '/var/run/ddpd/ddpd.json': JSON.stringify(said), '/var/run/ddpd/if-<img src=x>.json': '{}' } });
		return shown('view.ddpd.status').then(() => pause(500)).then(() => ({
			owned: window.OWNED === true, images: document.querySelectorAll('img').length, hostname: rows('granted')[1][8],
			times: place().textContent.split('<img src=x onerror').length - 1
		}));
	},

	hostileConfig: () => {
		const bad = '<img src=x onerror="window.OWNED = true">', given = copyOf(DATA.uci);

		for (const sid in given.ddpd)
			for (const option in given.ddpd[sid])
				if (option[0] != '.')
					given.ddpd[sid][option] = Array.isArray(given.ddpd[sid][option]) ? [ bad ] : bad;
		router({ uci: given, files: { '/etc/ddpd/key.pub': bad } });
		return configForm().then(m => sectionOf(m, 'grantee').renderMoreOptionsModal('alice')).then(() => pause(500)).then(() => ({
			owned: window.OWNED === true, images: document.querySelectorAll('img').length }));
	},

	/* Everything a file may hold. */
	broken: () => {
		const good = JSON.stringify(DATA.status), told = {};
		const contents = { empty: '', half: good.slice(0, 300), list: '[1, 2]', nothing: 'null', word: '"x"', bare: '{}',
			odd: JSON.stringify({ pools: 7, granted: [ null, 3, {} ], held: { a: 1 }, grantors: [ { refused: 9, default: 8 } ], counters: [],
				ndp: [ { ignored: 1, proxied: 1 } ], wireguard: 'x', uptime: 'y', recovering: 'z' }) };
		let chain = Promise.resolve();

		for (const name in contents)
			chain = chain.then(() => router({ files: Object.assign(KEYFILE(), { '/var/run/ddpd/ddpd.json': contents[name] }) }))
				.then(() => shown('view.ddpd.status')).then(() => { told[name] = words(place()); });

		return chain.then(() => router({ files: { '/var/run/ddpd/ddpd.json': good } })).then(() => shown('view.ddpd.status')).then(() => {
			window.FILES['/var/run/ddpd/ddpd.json'] = good.slice(0, 100);
			return poll.tick();
		}).then(() => {
			told.kept = rows('pools');
			delete window.FILES['/var/run/ddpd/ddpd.json'];
			return poll.tick();
		}).then(() => {
			told.gone = words(place());
			told.goneTables = place().querySelectorAll('table').length;
			window.FILES['/var/run/ddpd/ddpd.json'] = good;
			return poll.tick();
		}).then(() => {
			told.back = rows('pools');
			window.UBUS.system = { info: () => { throw new Error('no'); } };
			return poll.tick();
		}).then(() => Object.assign(told, { clockless: rows('held') }));
	},

	missing: () => {
		router({ uci: { ddpd: {}, network: { wan6d: { '.name': 'wan6d', '.type': 'interface', proto: 'ddpd' }, off: { '.name': 'off',
			'.type': 'interface', proto: 'ddpd', disabled: '1' } } }, files: KEYFILE() });
		return shown('view.ddpd.status').then(() => {
			const told = { only: [ ...document.querySelectorAll('.ddpd-card') ].map(words) };

			router({ files: KEYFILE() });
			return shown('view.ddpd.status').then(() => Object.assign(told, { none: words(place()),
				link: place().querySelector('.alert-message a').getAttribute('href'), saves: place().querySelectorAll('.cbi-page-actions').length }));
		});
	},

	/* What netifd says of the interfaces, and what it says when it says nothing. */
	interfaces: () => {
		const bad = '<img src=x onerror="window.OWNED = true">%s';
		const net = (name, more) => Object.assign({ 'interface': name, up: false, pending: false, proto: 'ddpd', device: 'eth1', l3_device: 'eth1', errors: [] }, more);
		const said = { version: '1', uptime: 1000, public_key: DATA.key.replace('B', 'C') };
		const notices = () => {
			const found = {};

			for (const card of document.querySelectorAll('.ddpd-card'))
				found[words(card.querySelector('h3'))] = [ ...card.querySelectorAll('.alert-message') ].map(words);
			return found;
		};
		const told = {};

		router({ files: Object.assign(KEYFILE(), { '/var/run/ddpd/if-asks.json': JSON.stringify(said), '/var/run/ddpd/if-half.json': '{' }), nets: [
			net('lan', { proto: 'static', errors: [ { code: 'NO_DEVICE' } ] }), net('down', { errors: [
				{ subsystem: 'ddpd', code: 'NO_GRANTOR', data: [ 'exit0' ] }, { code: 'UNKNOWN_KEY' }, 7, null, { code: 'NO_DEVICE' },
				{ code: 'NO_GRANTOR', data: [ 'exit1', 'exit2' ] }, { code: 'NO_GRANTOR', data: [ 'exit1', 'exit2' ] } ] }),
			net('asks', { errors: [ { code: 'REFUSED', data: [ bad ] } ] }), net('half', { errors: [ { code: bad, data: bad } ] }),
			net('works', { up: true, errors: [ { code: 'NO_NAME' } ] }), net('odd', { errors: 'x' }), null, 5 ] });

		return shown('view.ddpd.status').then(() => pause(100)).then(() => {
			Object.assign(told, { notices: notices(), images: document.querySelectorAll('img').length, owned: window.OWNED === true,
				keys: [ ...document.querySelectorAll('.ddpd-card') ].map(card => [ words(card.querySelector('h3')),
					...[ ...card.querySelectorAll('.ddpd-key') ].map(words) ]) });
			window.UBUS['network.interface'] = { dump: () => { throw new Error('no'); } };
			return poll.tick();
		}).then(() => {
			told.failed = Object.keys(notices());
			window.UBUS['network.interface'] = { dump: () => ({ 'interface': 'x' }) };
			return poll.tick();
		}).then(() => configForm()).then(m => Object.assign(told, { odd: sectionOf(m, 'ndp').getOption('device').keylist }));
	},

	/* As netifd dumps an interface that is up, one beside it, and the same when it is down. */
	netifd: () => {
		const said = copyOf(DATA.status);
		const net = { 'interface': 'wan6d', up: true, proto: 'ddpd', device: 'eth1', l3_device: 'eth1', errors: [],
			'ipv6-address': [ { address: '2001:db8:99:aaaa::1', mask: 128, preferred: 100, valid: 200 } ], 'ipv4-address': [],
			'ipv6-prefix': [ { address: '2001:db8:99:1200::', mask: 56, preferred: 1800, valid: 3600, 'class': 'wan6d', assigned: {
				lan: { address: '2001:db8:99:1200::', mask: 64 }, guest: { address: '2001:db8:99:1201::', mask: 64 } } }, { assigned: 7 }, null ],
			route: [ { target: '::', mask: 0, nexthop: 'fe80::1', valid: 3600, source: '2001:db8:99:1200::/56' },
				{ target: '2001:db8:5::', mask: 64 }, { target: '::', mask: 0, source: '2001:db8:99:aaaa::1/128' }, 3 ],
			'dns-server': [ '2001:db8::53', '192.0.2.53' ], 'dns-search': [ 'example.net' ],
			data: { state: 'bound', name: 'exit1.example.net', grantor: '2001:db8::1', silent: false, refused: '' } };
		const beside = { 'interface': 'wan6d_br_guest', up: true, proto: 'static', dynamic: true, device: 'br-guest', l3_device: 'br-guest',
			'ipv4-address': [ { address: '198.51.100.1', mask: 28 } ] };
		const bare = { 'interface': 'wan6d', up: false, proto: 'ddpd', device: 'eth1', errors: [], data: {} };
		const told = {};

		for (const row of [ ...said.held, ...said.grantors ])
			row[row.name ? 'name' : 'grantor'] = 'wan6d';
		said.held.length = said.grantors.length = 1;
		router({ files: { '/var/run/ddpd/if-wan6d.json': JSON.stringify(said) }, nets: [ net, beside ] });
		return shown('view.ddpd.status').then(() => {
			for (const name of [ 'held', 'grantors', 'refused', 'subnets' ])
				told[name] = rows(name);
			told.text = words(place());
			told.margin = place().querySelector('.ddpd-card').style.marginBottom;
			window.UBUS['network.interface'] = { dump: () => ({ 'interface': [ bare ] }) };
			return poll.tick();
		}).then(() => {
			told.down = { held: rows('held')[1][0], subnets: rows('subnets'), servers: words(place()).indexOf('Name servers') >= 0 };
			said.grantors[0].at = '';
			window.FILES['/var/run/ddpd/if-wan6d.json'] = JSON.stringify(said);
			return poll.tick();
		}).then(() => Object.assign(told, { nameless: rows('held')[1][0] }));
	},

	/* The stand-ins do refuse: these errors are meant. */
	refusals: () => {
		router({ uci: DATA.uci });
		const before = window.ERRORS.length, told = {};
		let chain = Promise.resolve();

		for (const by of [ 'view.ddpd.status', 'view.ddpd.config', 'protocol.ddpd' ]) {
			const mine = required('uci', by);
			const reads = name => mine.load(name).then(() => 'loaded', why => why.name).then(loaded =>
				[ loaded, mine.get(name, 'wan', 'proto') || null, mine.sections(name, 'interface').length ]);

			chain = chain.then(() => reads('network')).then(found => { told[by] = found; })
				.then(() => required('rpc', by).declare({ object: 'network.interface', method: 'dump', expect: { 'interface': [] } })())
				.then(found => { told[by].push(found.length); })
				.then(() => required('rpc', by).declare({ object: 'system', method: 'board' })().catch(why => why.name))
				.then(found => { told[by].push(found); });
		}

		window.UBUS.system.board = () => 'a board';
		return chain.then(() => Object.assign(told, { errors: window.ERRORS.splice(before).length }));
	},

	/* When is a file that is not written anew a sign that nobody runs? */
	stale: () => {
		const told = [];
		let chain = Promise.resolve();

		for (const [ ago, more ] of [ [ 61, { held: [ { valid: 40 } ] } ], [ 61, { granted: [ { valid: 40 } ] } ], [ 60, { held: [ { valid: 40 } ] } ],
			[ 61, { held: [ { valid: 61 } ] } ], [ 70, { held: [ { valid: 61 } ] } ], [ 72, { held: [ { valid: 61 } ] } ],
			[ 9999, { held: [ { valid: 4294967295, preferred: 1 } ], granted: [ { valid: 0, state: 'former' }, { valid: 99999, preferred: 5 } ] } ],
			[ 9999, {} ], [ -500, { held: [ { valid: 40 } ] } ] ])
			chain = chain.then(() => {
				router({ uptime: 1000 + ago, files: { '/var/run/ddpd/ddpd.json': JSON.stringify(Object.assign({ uptime: 1000 }, more)) } });
				return shown('view.ddpd.status');
			}).then(() => { told.push([ ...place().querySelectorAll('.alert-message') ].map(words)); });

		return chain.then(() => told);
	},

	many: () => {
		const said = copyOf(DATA.status);

		said.granted = DATA.many;
		said.granted_in_all = 1200;
		router({ files: { '/var/run/ddpd/ddpd.json': JSON.stringify(said) } });

		const bytes = window.FILES['/var/run/ddpd/ddpd.json'].length;

		return shown('view.ddpd.status').then(() => {
			const told = { bytes: bytes, first: rows('granted').length, text: words(place()) };
			const filter = place().querySelector('input');

			place().querySelector('.ddpd-all').click();
			told.all = rows('granted').length;
			filter.value = 'HOST777';
			filter.dispatchEvent(new Event('input'));
			told.filtered = rows('granted');
			return poll.tick().then(() => Object.assign(told, { still: rows('granted').length, kept: filter.value, same: place().querySelector('input') === filter }));
		});
	},

	copy: () => {
		const told = { commands: [], written: [] };

		router({ files: Object.assign(KEYFILE(), { '/var/run/ddpd/ddpd.json': JSON.stringify(DATA.status) }) });
		document.execCommand = what => {
			told.commands.push([ what, String(document.activeElement.value) ]);
			return true;
		};
		Object.defineProperty(window, 'isSecureContext', { value: false, configurable: true });
		return shown('view.ddpd.status').then(() => {
			const button = place().querySelector('.ddpd-copy');

			button.click();
			return pause(50).then(() => {
				told.plain = words(button);
				return pause(3000);
			}).then(() => {
				told.after = words(button);
				told.left = document.querySelectorAll('textarea').length;
				document.execCommand = () => { throw new Error('no'); };
				button.click();
				return pause(50);
			}).then(() => {
				told.byHand = [ words(button), String(window.getSelection()) ];
				Object.defineProperty(window, 'isSecureContext', { value: true, configurable: true });
				Object.defineProperty(navigator, 'clipboard', { value: { writeText: text => { told.written.push(text); return Promise.resolve(); } }, configurable: true });
				button.click();
				return pause(50);
			}).then(() => Object.assign(told, { secure: words(button) }));
		});
	},

	/* Every text that the pages have shown went through _() of one string: the template knows them. */
	texts: () => [ ...ALL_TEXTS ]
};

const ALL_TEXTS = new Set();

const PICTURES = {
	status: () => {
		router({ uptime: 1042, uci: DATA.uci, files: Object.assign(KEYFILE(), { '/var/run/ddpd/ddpd.json': JSON.stringify(DATA.status) }) });
		return shown('view.ddpd.status').then(() => { place().querySelector('details').open = true; });
	},
	missing: () => {
		router({ uci: DATA.uci, files: KEYFILE(), nets: [ { 'interface': 'wan6d', proto: 'ddpd', up: false,
			errors: [ { code: 'NO_GRANTOR', data: [ 'exit1.example.net' ] } ] } ] });
		return shown('view.ddpd.status');
	},
	config: () => {
		const given = copyOf(DATA.uci);

		delete given.ddpd.main.key;
		router({ uci: given, files: KEYFILE() });
		return configForm().then(() => { document.querySelectorAll('details').forEach((node, n) => { node.open = n < 2; }); });
	},
	modal: () => PICTURES.config().then(() => sectionOf(form.maps[0], 'grantor').renderMoreOptionsModal('exit')),
	neighbours: () => {
		router({ uci: { network: {}, ddpd: { n: { '.name': 'n', '.type': 'ndp' } } } });
		return configForm().then(m => sectionOf(m, 'ndp').renderMoreOptionsModal('n'))
			.then(() => document.querySelectorAll('.modal .cbi-tabmenu li')[1].click());
	},
	protocol: () => {
		const given = copyOf(DATA.uci);

		delete given.network.wan6d.keyfile;
		given.network.wan6d.defaultroute = '1';
		router({ uci: given, files: KEYFILE() });
		return protocolForm('wan6d');
	},
	advanced: () => PICTURES.protocol().then(() => place().querySelectorAll('.cbi-tabmenu li')[1].click())
};

function tell(scenes) {
	const told = { failed: {} };
	let chain = Promise.resolve();

	for (const name in scenes)
		chain = chain.then(() => scenes[name]()).then(found => { told[name] = found; }, why => { told.failed[name] = String(why && why.stack || why); })
			.then(() => (window.TRANSLATED || new Set()).forEach(text => ALL_TEXTS.add(text)));

	chain.then(() => pause(100)).then(() => {
		let binary = '';

		told.errors = window.ERRORS.slice();

		for (const byte of new TextEncoder().encode(JSON.stringify(told)))
			binary += String.fromCharCode(byte);
		dom.content(document.body, [ E('pre', { 'id': 'told' }, [ btoa(binary) ]) ]);
	});
}
